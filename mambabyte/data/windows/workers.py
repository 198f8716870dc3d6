"""How a data-loading process behaves when somebody ends the run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from mambabyte.runtime.signals import STOP_SIGNALS

_LOOK_EVERY = 0.2  # seconds
_CAN_TELL_SENDERS = hasattr(signal, "sigtimedwait")  # not on macOS


def loaded(*arguments: Any, num_workers: int, **options: Any) -> Iterator[Any]:
    """What a DataLoader of these arguments yields, from workers that outlive a signal to all processes.

    Ctrl+C and a scheduler's SIGTERM reach every process of a run, but the main one still needs its batches to
    finish the step and save: a worker heeds a SIGTERM of the main process only. When that is killed, workers
    leave at once, since they hold what it held: the lock of the run's directory.
    """
    loader: DataLoader[Any] = DataLoader(  # type: ignore[misc]
        *arguments, **options, num_workers=num_workers, worker_init_fn=_start_worker
    )
    if num_workers == 0 or not _CAN_TELL_SENDERS:
        return iter(loader)
    # Libraries start threads in a process that is being forked; these, too, must not take the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _CAN_TELL_SENDERS:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(main: int) -> None:
    while os.getppid() == main:
        received = signal.sigtimedwait({signal.SIGTERM}, _LOOK_EVERY)
        if received is not None and received.si_pid == main:
            break
    os._exit(0)
