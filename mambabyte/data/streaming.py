"""Windows cut from documents as they arrive, with the place behind each batch travelling with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch.utils.data import IterableDataset

from mambabyte.data.windows import Window, cut, num_contiguous_windows, random_start
from mambabyte.errors import UserError


@runtime_checkable
class StreamingSource(Protocol):
    def documents(self, split: str) -> Iterator[Any]: ...

    def identity(self) -> dict[str, Any]: ...

    def stream(
        self, split: str, cursor: dict[str, Any] | None = None
    ) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield (document, cursor) from the beginning or from a cursor. A cursor is plain JSON and, given
        back, makes the stream begin with the very document it came with."""
        ...


@dataclass(eq=False)
class StreamedBatches(IterableDataset):
    """Endless (windows, position) pairs for one rank.

    position: {"epoch", "document": number in the epoch, "window": the document's next window, "cursor": where
    the source finds that document}. Given back to the constructor, it yields what came after.
    """

    source: StreamingSource
    windows: str
    context_length: int
    micro_batch_size: int
    seed: int
    rank: int
    world_size: int
    position: dict[str, Any] | None

    def __iter__(self) -> Iterator[tuple[list[Window], dict[str, Any]]]:
        windows = []
        for window, position in self._windows():
            windows.append(window)
            if len(windows) == self.micro_batch_size:
                yield windows, position
                windows = []

    def _windows(self) -> Iterator[tuple[Window, dict[str, Any]]]:
        epoch, first_document, first_window, cursor = 0, 0, 0, None
        if self.position is not None:
            epoch, first_document = self.position["epoch"], self.position["document"]
            first_window, cursor = self.position["window"], self.position["cursor"]
        found = self.position is not None  # a stream that was left in the middle had windows before
        while True:
            stream = self.source.stream("train", cursor)
            for number, (document, place) in enumerate(stream, start=first_document):
                if number % self.world_size != self.rank:
                    continue
                begin = first_window if number == first_document else 0
                for index, window in self._cut(document, epoch, number, begin):
                    found = True
                    yield window, {"epoch": epoch, "document": number, "window": index + 1, "cursor": place}
            if not found:
                raise UserError(
                    f"the stream gave process {self.rank} of {self.world_size} no document of at least 2 "
                    f"bytes, so no window of context_length={self.context_length} can be cut"
                )
            found = False
            epoch, first_document, first_window, cursor = epoch + 1, 0, 0, None

    def _cut(self, document: bytes, epoch: int, number: int, begin: int) -> Iterator[tuple[int, Window]]:
        data = np.frombuffer(document, dtype=np.uint8)
        if self.windows == "random_per_document":
            if len(data) >= 2 and begin == 0:
                start = random_start(len(data), self.context_length, self.seed, epoch, number)
                yield 0, cut(data, start, self.context_length)
        else:
            for index in range(begin, num_contiguous_windows(len(data), self.context_length)):
                yield index, cut(data, index * self.context_length, self.context_length)
