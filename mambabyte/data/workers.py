"""How a data-loading process behaves when somebody ends the run."""

from __future__ import annotations

import os
import signal
import threading

_LOOK_EVERY = 0.2  # seconds


def start_worker(number: int) -> None:
    """A DataLoader's worker_init_fn.

    Ctrl+C and a scheduler's SIGTERM reach every process of a run, but the main one still needs its batches to
    finish the step and save: a worker heeds a SIGTERM of the main process only. When that is killed, workers
    leave at once, since they hold what it held: the lock of the run's directory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(main: int) -> None:
    while os.getppid() == main:
        received = signal.sigtimedwait({signal.SIGTERM}, _LOOK_EVERY)
        if received is not None and received.si_pid == main:
            break
    os._exit(0)
