"""The signals that ask a command to stop, and how it stops outside of training steps."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mambabyte.errors import Interrupted

# Ctrl+C; sent by schedulers and container engines; sent by SLURM with --signal=USR1@SECONDS
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """Raised by a stop signal. It is no Exception, so that no error handler catches it."""

    exit_code = Interrupted.exit_code


@contextmanager
def raise_on_stop_signal() -> Iterator[None]:
    """Raise :class:`Stopped` at the first stop signal; a second one exits at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, exit_at_once)
        raise Stopped(
            f"stopped by {signal.Signals(number).name} outside of training, so no step is lost; the same "
            "command resumes from there"
        )

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interrupt_noted(insisting: bool = True) -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl+C is only noted, for work that ends between two of its steps. The function that
    it gives says whether it was.

    Args:
        insisting: whether a second one raises KeyboardInterrupt as usual.
    """
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted and insisting:
            raise KeyboardInterrupt
        noted = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, previous)


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """A signal handler that exits with the code that shells report for the signal."""
    os._exit(128 + number)
