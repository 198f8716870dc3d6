"""Windows cut from documents as they are read, in an order that is a function of seed and place, so that a
place is all it takes to go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mambabyte.data.windows.batches import Batch
from mambabyte.data.windows.permutation import hash64, permuted
from mambabyte.data.windows.policies import NOT_SCORED, num_contiguous_windows, random_start
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


class Place(NamedTuple):
    """Where a reader stands, behind the window it came with: the epoch; where its block begins (which of the
    reader's units of that epoch, which window of that unit); how many of the block's windows it has had."""

    epoch: int = 0
    unit: int = 0
    window: int = 0
    taken: int = 0


class Piece(NamedTuple):
    """A window before it is padded and has targets: up to L + 1 bytes, and where documents begin in them."""

    text: np.ndarray
    starts: np.ndarray


_FIRST, _NONE = np.array([0]), np.array([], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Reader:
    """One of `readers` readers (the workers of all ranks), which share out the windows of every epoch.

    Each epoch permutes the units and deals them out in turn. With fewer units than readers, several readers
    share a unit, whose documents are dealt out by their number. Windows are cut from a unit's documents in
    order by the policy, and shuffled in blocks of block_windows, which are all that is kept in memory beside
    what the unit decodes at a time: block_windows * (context_length + 1) bytes.
    """

    units: Sequence[Unit]
    policy: str
    context_length: int
    block_windows: int
    seed: int
    number: int
    readers: int

    def pieces(self, place: Place) -> Iterator[tuple[Piece, Place]]:
        """What comes behind a place, without end, each piece with the place behind itself.

        Raises UserError when there is no window in many epochs.
        """
        taken = place.taken
        for start, block in self._blocks(place._replace(taken=0)):
            key = hash64(self.seed, self.number, *start)
            for index in range(taken, len(block)):
                yield block[permuted(index, len(block), key)], start._replace(taken=index + 1)
            taken = 0
            del block  # before the next one is read

    def share(self, epoch: int) -> list[tuple[int, int, int]]:
        """What this reader reads in an epoch: (unit, part, parts), rows part, part + parts, ... of it."""
        count, key = len(self.units), hash64(self.seed, epoch)
        if count >= self.readers:
            return [(permuted(dealt, count, key), 0, 1) for dealt in range(self.number, count, self.readers)]
        turn, dealt = divmod(self.number, count)
        parts = len(range(dealt, self.readers, count))
        # Turned on with the epoch, so that no reader is left without documents where there are few of them.
        return [(permuted(dealt, count, key), (turn + epoch) % parts, parts)]

    def _blocks(self, start: Place) -> Iterator[tuple[Place, list[Piece]]]:
        empty_epochs = -1 if start.unit or start.window else 0  # the rest of an epoch may well be empty
        while empty_epochs < max(_EMPTY_EPOCHS, self.readers):
            block: list[Piece] = []
            empty_epochs += 1
            for piece, after in self._rest_of_epoch(start):
                block.append(Piece(piece.text.copy(), piece.starts))
                empty_epochs = 0
                if len(block) == self.block_windows:
                    yield start, block
                    start, block = after, []
            if block:
                yield start, block
            start = Place(start.epoch + 1)
        raise UserError(
            f"the stream has no document of at least 2 bytes for reader {self.number + 1} of {self.readers}, "
            f"so no window of context_length={self.context_length} can be cut; check data.text_column, or "
            "use fewer ranks or data.workers"
        )

    def _rest_of_epoch(self, start: Place) -> Iterator[tuple[Piece, Place]]:
        """The pieces in order, each with the place where a block behind it would begin."""
        share = self.share(start.epoch)
        first = start.window
        for place in range(start.unit, len(share)):
            pieces = self._cut(start.epoch, *share[place])
            for window, piece in enumerate(islice(pieces, first, None), start=first):
                yield piece, Place(start.epoch, place, window + 1)
            first = 0

    def _cut(self, epoch: int, unit: int, part: int, parts: int) -> Iterator[Piece]:
        batches = _dealt(self.units[unit].batches(), part, parts)
        length = self.context_length
        if self.policy == "packed":
            yield from _packed(batches, length)
            return
        for data, offsets, rows in batches:
            for begin, end, row in zip(offsets[:-1].tolist(), offsets[1:].tolist(), rows, strict=True):
                document = data[begin:end]
                if self.policy == "random_per_document":
                    if len(document) >= 2:
                        start = random_start(len(document), length, self.seed, epoch, hash64(unit, row))
                        yield Piece(document[start : start + length + 1], _NONE if start else _FIRST)
                else:
                    for start in range(0, num_contiguous_windows(len(document), length) * length, length):
                        yield Piece(document[start : start + length + 1], _NONE if start else _FIRST)


def stack_pieces(pieces: Sequence[Piece], context_length: int) -> Batch:
    """One batch of tensors (b, L) from b pieces; no byte is predicted from another document's."""
    shape = len(pieces), context_length
    inputs, targets = np.zeros(shape, np.uint8), np.full(shape, NOT_SCORED, np.int16)
    document_start = np.zeros(shape, bool)
    for row, (text, starts) in enumerate(pieces):
        size = min(len(text), context_length)
        inputs[row, :size] = text[:size]
        targets[row, : len(text) - 1] = text[1:]
        if len(starts):
            document_start[row, starts[starts < size]] = True
            targets[row, starts[starts > 0] - 1] = NOT_SCORED
    arrays = {"bytes": inputs, "targets": targets, "document_start": document_start}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _dealt(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], part: int, parts: int
) -> Iterator[tuple[np.ndarray, np.ndarray, range]]:
    """(data, offsets, row numbers in the unit) of the rows that are `part` modulo `parts`."""
    first = 0
    for data, offsets in batches:
        number = len(offsets) - 1
        if parts == 1:
            yield data, offsets, range(first, first + number)
        else:
            mine = range((part - first) % parts, number, parts)
            lengths = np.diff(offsets)[mine.start :: parts]
            ours = [data[offsets[row] : offsets[row + 1]] for row in mine]
            rows = range(first + mine.start, first + number, parts)
            yield np.concatenate(ours or [data[:0]]), np.cumsum([0, *lengths]), rows
        first += number


def _packed(batches: Iterator[tuple[np.ndarray, np.ndarray, range]], context_length: int) -> Iterator[Piece]:
    """The documents end to end, cut in consecutive windows; the last may be shorter."""
    text, starts = np.empty(0, np.uint8), _NONE
    for data, offsets, _ in batches:
        begins = offsets[:-1][np.diff(offsets) > 0] - offsets[0] + len(text)
        starts = np.concatenate([starts, begins])
        text = np.concatenate([text, data[offsets[0] : offsets[-1]]])
        done = max(len(text) - 1, 0) // context_length * context_length  # whole windows only
        for begin in range(0, done, context_length):
            yield _piece(text, starts, begin, context_length)
        text, starts = text[done:], starts[np.searchsorted(starts, done) :] - done
    if len(text) >= 2:
        yield _piece(text, starts, 0, context_length)


def _piece(text: np.ndarray, starts: np.ndarray, begin: int, context_length: int) -> Piece:
    first, last = np.searchsorted(starts, [begin, begin + context_length + 1])
    return Piece(text[begin : begin + context_length + 1], starts[first:last] - begin)


@dataclass(eq=False)
class StreamedBatches(IterableDataset):
    """Endless batches of one rank for a DataLoader with `workers` workers (0: in the process itself).

    A batch has under "position" the place behind it, as plain JSON with the worker's number. places holds
    one for each worker, and first_worker says whose turn it is: both together are where a rank goes on.
    """

    units: Sequence[Unit]
    policy: str
    context_length: int
    block_windows: int
    micro_batch_size: int
    seed: int
    rank: int
    world_size: int
    workers: int
    places: list[Place]
    first_worker: int = 0

    def __iter__(self) -> Iterator[Batch | UserError]:
        process = get_worker_info()
        workers = max(self.workers, 1)
        # The loader takes from its processes in turn, beginning with process 0.
        worker = (self.first_worker + (process.id if process else 0)) % workers
        reader = Reader(
            self.units,
            self.policy,
            self.context_length,
            self.block_windows,
            self.seed,
            self.rank * workers + worker,
            self.world_size * workers,
        )
        try:
            pieces = []
            for piece, place in reader.pieces(self.places[worker]):
                pieces.append(piece)
                if len(pieces) == self.micro_batch_size:
                    position = {"worker": worker, **place._asdict()}
                    yield {**stack_pieces(pieces, self.context_length), "position": position}
                    pieces = []
        except UserError as error:
            yield error  # raised in a worker, it would come with a traceback in its sentence
