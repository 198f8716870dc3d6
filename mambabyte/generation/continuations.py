"""The texts of one command: of each prompt one or several, written together, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mambabyte.generation.batch import Batch, Row
from mambabyte.generation.context import Context, read
from mambabyte.generation.generator import generate
from mambabyte.generation.prompts import Prompt
from mambabyte.generation.sampler import Sampler
from mambabyte.models import ByteLM
from mambabyte.runtime.units import counted

Written = Iterator[tuple["Continuation", bytes]]


class Continuation(Row):
    """A text that continues a prompt.

    Attributes:
        index: its place among all texts of the command.
        prompt_bytes: the bytes that were read of the prompt.
    """

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        prompt_bytes: int,
        sampler: Sampler,
        length: int,
        stop: Sequence[bytes],
        keep_context: bool,
    ) -> None:
        super().__init__(sampler, length, stop, keep_context)
        self.index = index
        self.prompt, self.prompt_bytes = prompt, prompt_bytes


@dataclass
class Spent:
    """Bytes and seconds of reading prompts, and of writing."""

    read_bytes: int = 0
    reading_seconds: float = 0.0
    written_bytes: int = 0
    writing_seconds: float = 0.0

    def read(self, model: ByteLM, prompt: Prompt, context: Context | None) -> tuple[Context, int]:
        """Have the model read a prompt after a context; with neither bytes nor a context, a line feed.

        Returns:
            The context after it, and the number of its bytes.

        Raises:
            UserError: it cannot be read.
        """
        begun, after, count = time.perf_counter(), context, 0
        try:
            for each in prompt.read(model, context):
                piece = each.length - (0 if after is None else after.length)
                count, self.read_bytes, after = count + piece, self.read_bytes + piece, each
        finally:
            self.reading_seconds += time.perf_counter() - begun
        return after or read(model, b""), count

    def writing(self, written: Written) -> Written:
        """The same, timed; without what is read in between, and without what the caller does."""
        while True:
            begun, reading = time.perf_counter(), self.reading_seconds
            each = next(written, None)
            self.writing_seconds += time.perf_counter() - begun - (self.reading_seconds - reading)
            if each is None:
                return
            yield each

    def __str__(self) -> str:
        parts = []
        if self.read_bytes:
            parts.append(f"read {_rate(self.read_bytes, self.reading_seconds)}")
        if self.written_bytes or not parts:
            parts.append(f"wrote {_rate(self.written_bytes, self.writing_seconds)}")
        return ", ".join(parts)


def _rate(number: int, seconds: float) -> str:
    per_second = f" ({number / seconds:,.0f} bytes/s)" if seconds else ""
    return f"{counted(number, 'byte')} in {seconds:.2f} s{per_second}"


def written_together(
    batch: Batch, rows: Iterable[tuple[Context, Continuation]], at_once: int, interrupted: Callable[[], bool]
) -> Written:
    """What may be shown of each text as it comes. So many are written at once; another begins when one ends.

    Args:
        interrupted: looked at after each step; the texts that are begun then end there.
    """
    waiting = iter(rows)
    while not interrupted():
        for context, row in islice(waiting, at_once - len(batch.rows)):
            batch.add(context, [row])
        if not batch.rows:
            return
        texts: dict[Continuation, bytes] = {}  # a drafted step gives a row several bytes
        for drawn in batch.step():
            assert isinstance(drawn.row, Continuation)
            texts[drawn.row] = texts.get(drawn.row, b"") + drawn.text
        yield from texts.items()
    for left in batch.rows:
        assert isinstance(left, Continuation)
        batch.remove(left)
        yield left, left.interrupt()


def written_alone(
    model: ByteLM, context: Context, row: Continuation, weights: str, interrupted: Callable[[], bool]
) -> Written:
    """As `written_together` for one text that keeps no context, which a GPU may draw by itself."""
    for byte in generate(model, b"", row.length, row.sampler, weights, context):
        yield row, row.push(byte)
        if row.finished is not None:
            return
        if interrupted():
            yield row, row.interrupt()
            return
