"""The one line that says how training goes."""

import sys
import time
from collections.abc import Mapping
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0


class ProgressLine:
    """Shows rows of metrics on stderr: rewritten in place on a terminal, else a line every ten seconds."""

    def __init__(self, max_steps: int, bytes_per_step: int, first_step: int) -> None:
        self._max_steps = max_steps
        self._bytes_per_step = bytes_per_step
        self._first_step = first_step
        self._started = time.monotonic()
        self._last = -_SECONDS_BETWEEN_LINES
        self._validation: float | None = None
        self._width = 0

    def show(self, row: Mapping[str, Any], final: bool) -> None:
        """Show a row of metrics, or keep silent if the last one was a moment ago."""
        self._validation = row["validation_bits_per_byte"] or self._validation
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if not (terminal or final or now - self._last >= _SECONDS_BETWEEN_LINES):
            return
        self._last = now
        text = self._text(row, now)
        if terminal:
            print("\r" + text.ljust(self._width), end="\n" if final else "", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def _text(self, row: Mapping[str, Any], now: float) -> str:
        step = row["step"]
        # of this sitting, validation and samples included: what the clock on the wall will show
        seconds_per_step = (now - self._started) / max(1, step - self._first_step)
        parts = [
            f"step {step}/{self._max_steps}",
            f"{row['bits_per_byte']:.3f} bpb",
            *([f"{self._validation:.3f} validation bpb"] if self._validation else []),
            f"lr {row['learning_rate']:.1e}",
            f"gradient {row['gradient_norm']:.2f}",
            f"{byte_count(row['bytes_per_second'])}/s",
            f"mfu {100 * row['model_flops_utilization']:.1f} %",
            byte_count(row["bytes"], of=self._max_steps * self._bytes_per_step),
            f"eta {duration((self._max_steps - step) * seconds_per_step)}",
        ]
        return " | ".join(parts)


def duration(seconds: float) -> str:
    """Two units of time: "3 m 20 s", "5 h 12 m", "2 d 3 h"."""
    seconds = round(seconds)
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller} {smaller_unit}"
    return f"{seconds} s"


def byte_count(value: float, of: float | None = None) -> str:
    """Decimal units: "14.2 kB"; with ``of``, both in the unit of the larger: "1.2/7.4 MB"."""
    largest = value if of is None else of
    scale, unit = next(
        (
            (scale, unit)
            for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
            if largest >= scale
        ),
        (1, "B"),
    )
    digits = 0 if scale == 1 else 1
    first = f"{value / scale:.{digits}f}"
    return f"{first} {unit}" if of is None else f"{first}/{of / scale:.{digits}f} {unit}"
