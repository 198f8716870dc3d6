"""Progress on stderr, by tqdm: drawn in place on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from mambabyte.runtime.units import counted

_USUAL_WIDTH = 80
ProgressCallback = Callable[[int, int], None]  # called with (bytes done, bytes to do)


class StatusLine(tqdm):
    """A tqdm bar that fits its terminal, and prints plain lines, ten seconds apart, where stderr is none.

    Args:
        first_after: seconds before anything is shown.
    """

    monitor_interval = 0  # no thread: with miniters=1 each update looks at the clock

    def __init__(self, first_after: float = 0.0, **settings: Any) -> None:
        self._terminal = sys.stderr.isatty()
        self._printed = -1  # the count on the last plain line
        # keeps tqdm's cursor movements out of log files
        file = sys.stderr if self._terminal else io.StringIO()
        how = {"delay": first_after, "mininterval": first_after, "miniters": 1, "dynamic_ncols": True}
        # position: below a bar that an error has left behind, tqdm would move it down a line
        super().__init__(file=file, position=0, **how, **settings)

    @property
    def width(self) -> int | None:
        """The columns that text may fill; None where stderr is no terminal."""
        return (self.format_dict["ncols"] or _USUAL_WIDTH) - 1 if self._terminal else None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        text = str(self) if msg is None else msg
        if text:
            self.mininterval = 0.1 if self._terminal else 10.0
            if self._terminal:
                return super().display(text[: self.width], pos)  # a longer one would leave torn rows
            if (
                self._printed == self.n == self.total
            ):  # tqdm shows the end twice: as it is reached, and as it closes
                return True
            self._printed = self.n
            print(text, file=sys.stderr, flush=True)
        return True

    def __del__(self) -> None:
        """Leave an interrupted bar as it is: tqdm would draw it again below the error message."""


class Progress(StatusLine):
    """Bytes and documents done, the rate and, where the total is known, the share and the time left.

    Work of less than two seconds shows nothing.
    """

    def __init__(self, label: str, total_bytes: int | None, done_bytes: int = 0, unit: str = "B") -> None:
        super().__init__(
            2.0,
            desc=label,
            total=total_bytes,
            initial=done_bytes,
            unit=unit,
            unit_scale=unit == "B",
            smoothing=0,
        )

    def show(self, done_bytes: int, documents: int | None = None) -> None:
        """Report what is done; cheap enough to call for every document."""
        if documents is not None:
            self.set_postfix_str(counted(documents, "document"), refresh=False)
        self.update(done_bytes - self.n)


def progress_bar(label: str, unit: str = "B") -> ProgressCallback:
    """A callback that shows a :class:`Progress`, of bytes or of another unit, until all is done."""
    bar: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = Progress(
                label, total, done, unit
            )  # bytes from an earlier run do not count towards the rate
        bar.show(done)
        if done == total:
            bar.close()

    return show
