"""The signals that ask a command to end, and how it ends where no optimizer step is under way."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mambabyte.errors import Interrupted

# Ctrl+C; what schedulers and container engines send; what SLURM sends with --signal=USR1@SECONDS
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """Raised wherever the program is when a stop signal comes; no handler of faults mistakes it for one."""

    exit_code = Interrupted.exit_code


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Turn the first stop signal into :class:`Stopped`, and let a second one end the process there and then.

    Whatever is being written meanwhile is written whole or not at all, so that nothing has to be saved.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, end_process)
        raise Stopped(
            f"stopped by {signal.Signals(number).name} outside of training, so no step is lost; the same "
            "command goes on from there"
        )

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_process(number: int, frame: FrameType | None) -> None:
    """A signal handler that leaves at once, with the code a shell shows for that signal."""
    os._exit(128 + number)
