"""Data-loading processes that survive the signals which end a run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from mambabyte.runtime.signals import STOP_SIGNALS

_POLL_SECONDS = 0.2
_SENDER_IS_KNOWN = hasattr(signal, "sigtimedwait")  # not on macOS


def load_batches(*arguments: Any, num_workers: int, **options: Any) -> Iterator[Any]:
    """What a DataLoader with these arguments yields, from workers that ignore signals sent to all processes.

    Ctrl+C and a scheduler's SIGTERM reach every process of a run, but the main process needs more batches to
    finish the step and save. So a worker obeys only a SIGTERM from the main process. When the main process is
    killed, workers exit at once, since they have inherited its lock on the run's directory.
    """
    loader: DataLoader[Any] = DataLoader(  # type: ignore[misc]
        *arguments, **options, num_workers=num_workers, worker_init_fn=_start_worker
    )
    if num_workers == 0 or not _SENDER_IS_KNOWN:
        return iter(loader)
    # Blocked before the fork, so that threads which libraries start in a worker do not receive them either.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _SENDER_IS_KNOWN:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(main: int) -> None:
    while os.getppid() == main:
        received = signal.sigtimedwait({signal.SIGTERM}, _POLL_SECONDS)
        if received is not None and received.si_pid == main:
            break
    os._exit(0)
