"""A line on stderr about work that takes longer than two seconds."""

from __future__ import annotations

import sys
import time

_BAR = 24


class Progress:
    """Documents and bytes done, the rate, and a bar with the time left where the total is known.

    Rewritten in place on a terminal, else a line every ten seconds.
    """

    def __init__(self, what: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        self._what, self._total, self._first = what, total_bytes, done_bytes
        self._started = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._next = self._started + 2
        self._width = 0

    def show(self, num_bytes: int, num_documents: int, now: float | None = None) -> None:
        """Show the line, unless the last one was a moment ago."""
        now = time.monotonic() if now is None else now
        if now < self._next:
            return
        self._next = now + (0.5 if self._terminal else 10)
        line = self._line(num_bytes, num_documents, now - self._started)
        if self._terminal:
            print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._width:
            print(file=sys.stderr)

    def _line(self, num_bytes: int, num_documents: int, seconds: float) -> str:
        rate = (num_bytes - self._first) / max(seconds, 1e-9)
        line = f"{counted(num_documents, 'document')}, {num_bytes / 1e6:,.1f} MB, {rate / 1e6:,.1f} MB/s"
        if self._total:
            # A total may be an estimate, so that the work can reach beyond it.
            share = min(num_bytes / self._total, 1.0)
            full = int(share * _BAR)
            left = max(self._total - num_bytes, 0) / max(rate, 1e-9)
            line = f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}, {line}, {_clock(left)} left"
        return f"{self._what}: {line}"


def counted(number: int, noun: str) -> str:
    """ "1 document", "2,000 documents"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
