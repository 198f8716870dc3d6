"""Streaming: windows cut from documents as they are read, in an order that is a pure function of the seed and
a position, so that the position is enough to resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from mambabyte.data.windows.batches import Batch, as_tensors
from mambabyte.data.windows.permutation import SHUFFLE, hash64, hash64_each, permuted
from mambabyte.data.windows.policies import POLICIES, WindowPolicy, assemble, num_windows
from mambabyte.errors import UserError

_EMPTY_EPOCHS = 100  # in a row, before a reader gives up


class Unit(Protocol):
    """What one reader reads from beginning to end: a row group of a shard. Can be pickled."""

    @property
    def identity(self) -> Any:
        """Plain JSON that changes when the unit's documents do."""
        ...

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (data, offsets), document i of the batch being data[offsets[i]:offsets[i + 1]], uint8."""
        ...


@runtime_checkable
class StreamingSource(Protocol):
    def identity(self) -> dict[str, Any]: ...

    def units(self, split: str) -> Sequence[Unit]:
        """The units of a split, always in the same order."""
        ...


class StreamPosition(NamedTuple):
    """Where a reader resumes. The names are keys of checkpoints.

    Attributes:
        epoch: the reader's; others may be in another one.
        unit: in which of the reader's units of the epoch its block begins.
        window: with which of that unit's windows the block begins.
        taken: how many of the block's windows have been served.
    """

    epoch: int = 0
    unit: int = 0
    window: int = 0
    taken: int = 0


class CutWindow(NamedTuple):
    """A window before padding: up to L + 1 bytes, and where documents begin in them."""

    text: np.ndarray
    begins: np.ndarray


@dataclass(frozen=True, eq=False)
class Reader:
    """One of the ``readers`` readers, the workers of all ranks, that share the windows of every epoch.

    Each epoch permutes the units and distributes them round-robin. With fewer units than readers, several
    readers share a unit and distribute its documents by row number. The policy cuts windows from a unit's
    documents in order; they are shuffled in blocks of block_windows. Memory holds one block, that is
    block_windows * (context_length + 1) bytes, and what the unit decodes at a time.
    """

    units: Sequence[Unit]
    policy: str
    context_length: int
    block_windows: int
    seed: int
    number: int
    readers: int
    shuffle: int = SHUFFLE  # see `permuted`

    def windows(self, position: StreamPosition) -> Iterator[tuple[CutWindow, StreamPosition]]:
        """Endless windows from a position on, each with its resume position."""
        served = position.taken
        for start, block in self._blocks(position._replace(taken=0)):
            key = hash64(self.seed, self.number, *start)
            order = self._permuted(np.arange(served, len(block)), len(block), key)
            for taken, index in enumerate(order, start=served + 1):
                yield block[index], start._replace(taken=taken)
            served = 0
            del block  # before the next one is read

    def share(self, epoch: int) -> list[tuple[int, int, int]]:
        """What this reader reads in an epoch: (unit, part, parts), of which it takes each parts-th row from
        row ``part`` on."""
        count, key = len(self.units), hash64(self.seed, epoch)
        if count >= self.readers:
            mine = self._permuted(np.arange(self.number, count, self.readers), count, key)
            return [(unit, 0, 1) for unit in mine]
        turn, index = divmod(self.number, count)
        parts = len(range(index, self.readers, count))
        (unit,) = self._permuted(np.array([index]), count, key)
        # Rotated with the epoch, so that no reader is always without documents.
        return [(unit, (turn + epoch) % parts, parts)]

    def _permuted(self, indices: np.ndarray, size: int, key: int) -> list[int]:
        return permuted(indices, size, key, self.shuffle).tolist()

    def _blocks(self, start: StreamPosition) -> Iterator[tuple[StreamPosition, list[CutWindow]]]:
        empty_epochs = -1 if start.unit or start.window else 0  # the rest of an epoch may be empty
        while empty_epochs < max(_EMPTY_EPOCHS, self.readers):
            block: list[CutWindow] = []
            empty_epochs += 1
            for window, after in self._rest_of_epoch(start):
                block.append(CutWindow(window.text.copy(), window.begins))
                empty_epochs = 0
                if len(block) == self.block_windows:
                    yield start, block
                    start, block = after, []
            if block:
                yield start, block
            start = StreamPosition(start.epoch + 1)
        raise UserError(
            f"the stream has no document of at least 2 bytes for reader {self.number + 1} of {self.readers}, "
            f"so no window of context_length={self.context_length} can be cut; check data.text_column, or "
            "use fewer ranks or data.workers"
        )

    def _rest_of_epoch(self, start: StreamPosition) -> Iterator[tuple[CutWindow, StreamPosition]]:
        """The windows in order, each with the position of a block that would begin after it."""
        share = self.share(start.epoch)
        first = start.window
        for index in range(start.unit, len(share)):
            windows = self._windows_of_unit(start.epoch, *share[index])
            for number, window in enumerate(islice(windows, first, None), start=first):
                yield window, StreamPosition(start.epoch, index, number + 1)
            first = 0

    def _windows_of_unit(self, epoch: int, unit: int, part: int, parts: int) -> Iterator[CutWindow]:
        batches = _every_nth_row(self.units[unit].batches(), part, parts)
        if self.policy == "packed":
            yield from self._packed(epoch, batches)
            return
        for data, offsets, rows in batches:
            identities = hash64_each(unit, last=np.array(rows))
            policy = POLICIES[self.policy](offsets, self.context_length, self.seed, identities)
            yield from _cut(data, policy, epoch, len(policy))

    def _packed(
        self, epoch: int, batches: Iterator[tuple[np.ndarray, np.ndarray, range]]
    ) -> Iterator[CutWindow]:
        """Windows of the documents end to end; bytes that do not fill one are kept for the next batch."""
        length = self.context_length
        text, begins = np.empty(0, np.uint8), np.empty(0, np.int64)

        def windows(count: int) -> Iterator[CutWindow]:
            offsets = np.append(begins, len(text))
            return _cut(text, POLICIES["packed"](offsets, length, self.seed), epoch, count)

        for data, offsets, _ in batches:
            new = offsets[:-1][np.diff(offsets) > 0] - offsets[0] + len(text)
            begins, text = np.append(begins, new), np.append(text, data[offsets[0] : offsets[-1]])
            whole = max(len(text) - 1, 0) // length
            yield from windows(whole)
            text, begins = text[whole * length :], begins[begins >= whole * length] - whole * length
        yield from windows(int(num_windows(len(text), length)))


def stack(windows: Sequence[CutWindow], context_length: int) -> Batch:
    """One batch of tensors (b, L) from b windows."""
    rows = np.zeros((len(windows), context_length + 1), np.uint8)
    for row, window in zip(rows, windows, strict=True):
        row[: len(window.text)] = window.text
    available = np.array([len(window.text) for window in windows])
    numbers = np.repeat(np.arange(len(windows)), [len(window.begins) for window in windows])
    begins = np.concatenate([window.begins for window in windows])
    return as_tensors(assemble(rows, available, (numbers, begins)))


def _cut(data: np.ndarray, policy: WindowPolicy, epoch: int, count: int) -> Iterator[CutWindow]:
    """The first ``count`` windows of a policy over the documents in ``data``, in order."""
    if count == 0:
        return
    starts, stops = policy.spans(epoch, np.arange(count))
    stops = np.minimum(stops, starts + policy.context_length + 1)
    rows, begins = policy.document_begins(starts)
    borders = np.searchsorted(rows, np.arange(count + 1)).tolist()
    for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        yield CutWindow(data[start:stop], begins[borders[number] : borders[number + 1]])


def _every_nth_row(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], part: int, parts: int
) -> Iterator[tuple[np.ndarray, np.ndarray, range]]:
    """(data, offsets, row numbers in the unit) of each parts-th row of a unit from row ``part`` on."""
    first = 0
    for data, offsets in batches:
        number = len(offsets) - 1
        if parts == 1:
            yield data, offsets, range(first, first + number)
        else:
            mine = range((part - first) % parts, number, parts)
            lengths = np.diff(offsets)[mine.start :: parts]
            documents = [data[offsets[row] : offsets[row + 1]] for row in mine]
            rows = range(first + mine.start, first + number, parts)
            yield np.concatenate(documents or [data[:0]]), np.cumsum([0, *lengths]), rows
        first += number


@dataclass(eq=False)
class StreamedBatches(IterableDataset):
    """Endless batches of one rank for a DataLoader with ``workers`` workers (0: in the process itself).

    Each batch has its resume position under "position", as plain JSON with the number of the worker.

    Attributes:
        reader: what a rank with one worker would have: its number is the rank, of as many readers as ranks.
        positions: where each worker begins.
        first_worker: which worker the first batch comes from.
    """

    reader: Reader
    micro_batch_size: int
    workers: int
    positions: list[StreamPosition]
    first_worker: int = 0

    def __iter__(self) -> Iterator[Batch | UserError]:
        process = get_worker_info()
        workers = max(self.workers, 1)
        # The loader takes batches from its processes round-robin, beginning with process 0.
        worker = (self.first_worker + (process.id if process else 0)) % workers
        rank, ranks = self.reader.number, self.reader.readers
        reader = replace(self.reader, number=rank * workers + worker, readers=ranks * workers)
        windows = []
        try:
            for window, position in reader.windows(self.positions[worker]):
                windows.append(window)
                if len(windows) == self.micro_batch_size:
                    batch = stack(windows, reader.context_length)
                    yield {**batch, "position": {"worker": worker, **position._asdict()}}
                    windows = []
        except UserError as error:
            yield error  # raised in a worker, its message would become a traceback
