"""How a data-loading process behaves when somebody ends the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from types import FrameType


def start_worker(number: int) -> None:
    """A DataLoader's worker_init_fn.

    Ctrl+C and a scheduler's SIGTERM reach every process of a run, but the main one still needs its batches to
    finish the step and save. It ends its workers itself, if need be by a second SIGTERM. When it is killed
    they leave at once, since they hold what it held: the lock of the run's directory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _first_sigterm)
    threading.Thread(target=_leave_with_the_main_process, daemon=True).start()


def _first_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_with_the_main_process() -> None:
    main = multiprocessing.parent_process()
    if main is not None:
        wait([main.sentinel])
        os._exit(1)
