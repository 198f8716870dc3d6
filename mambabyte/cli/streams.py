"""Standard output and standard error, which may be closed, full, ASCII only, or a terminal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from mambabyte.runtime.terminal import visible


class _Stream(io.TextIOWrapper):
    """Writes to the buffer of another stream, with escapes for what its encoding lacks.

    Attributes:
        fault: the system's error, if a write failed.
    """

    fault: OSError | None = None

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            newline="",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def close(self) -> None:
        """Leave the buffer open: it is the other stream's."""

    def drop(self) -> None:
        """Send what is still in the buffer nowhere, or Python would complain of it at its end."""
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


class StandardOutput(_Stream):
    """Standard output; remembers why a write failed, and shows control characters as symbols."""

    def write(self, text: str) -> int:
        return self.write_coloured(visible(text))

    def write_coloured(self, text: str) -> int:
        """Write text whose control characters are our own."""
        with self._noting_faults():
            return super().write(text)

    def write_bytes(self, data: bytes) -> None:
        """Write bytes as they are."""
        with self._noting_faults():
            self.buffer.write(data)

    def flush(self) -> None:
        if self.fault is not None:  # argparse drops what its own writes raise
            raise self.fault
        with self._noting_faults():
            super().flush()

    @contextmanager
    def _noting_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            self.fault = fault
            raise


class StandardError(_Stream):
    """Standard error. What cannot be written there is lost, for it must not end a run. Our own notes, which
    may quote names, show control characters as symbols; bars, and what libraries write in colour, do not."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(visible(text) if text.startswith("mambabyte: ") else text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


@contextmanager
def safe_streams() -> Iterator[None]:
    """Replace the standard streams by safe ones. A closed one writes nowhere."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # takes the number, which a file would take otherwise
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _safe(sys.stdout, StandardOutput), _safe(sys.stderr, StandardError)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Stream):
                try:
                    io.TextIOWrapper.flush(stream)
                except OSError:
                    stream.drop()
        sys.stdout, sys.stderr = before


def _safe(stream: TextIO | None, kind: type[_Stream]) -> TextIO:
    if stream is None:
        return open(os.devnull, "w")
    if isinstance(stream, _Stream) or not isinstance(stream, io.TextIOWrapper):  # a notebook's
        return stream
    return kind(stream)
