"""What the model sees: windows of context_length bytes cut from documents by a named policy.

A window's inputs are bytes [s, s + L) and its targets bytes [s + 1, s + L + 1); a target never lies in
another document than its input. Every policy is a pure map from (seed, epoch, index) to a window, so a
position in training is one integer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, TypedDict

import numpy as np

from mambabyte.data.corpus.corpus import ByteCorpus
from mambabyte.data.windows.permutation import hash64, hash64_each, permuted_array
from mambabyte.errors import UserError

NOT_SCORED = -100  # torch.nn.functional.cross_entropy's ignore_index
_CHUNK = 1024  # positions whose places are worked out together


class Window(TypedDict):
    """bytes: (L,) uint8, zeros where the window is padded; targets: (L,) int16, the byte after each input
    byte, -100 where none is scored; document_start: (L,) bool, true where a document's first byte stands.

    A batch of b windows has the same fields of shape (b, L).
    """

    bytes: np.ndarray
    targets: np.ndarray
    document_start: np.ndarray


class WindowPolicy(ABC):
    """Windows over a corpus, in a shuffled order of their own in every epoch.

    Position p of the endless sequence of epochs is window p % len of epoch p // len.
    """

    def __init__(self, corpus: ByteCorpus, context_length: int, seed: int) -> None:
        self.corpus, self.context_length, self.seed = corpus, context_length, seed
        self._chunks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @abstractmethod
    def __len__(self) -> int:
        """Windows in an epoch."""

    @abstractmethod
    def spans(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, stops), (n,) int64: where the windows begin in the corpus, and where what they may read
        ends, however far away that is."""

    def window(self, epoch: int, index: int) -> Window:
        """The index-th window of an epoch, in that epoch's shuffled order."""
        if not 0 <= index < len(self):
            raise IndexError(f"an epoch has {len(self)} windows, and no number {index}")
        batch = self.batch(np.array([epoch * len(self) + index]))
        return Window(
            bytes=batch["bytes"][0], targets=batch["targets"][0], document_start=batch["document_start"][0]
        )

    def batch(self, positions: np.ndarray) -> Window:
        """The windows at (b,) positions of the endless sequence, stacked."""
        starts, stops = self._places(positions)
        length = self.context_length
        rows = self._rows(starts)
        batch = Window(
            bytes=np.empty((len(starts), length), dtype=np.uint8),
            targets=rows[:, 1:].astype(np.int16),
            document_start=np.zeros((len(starts), length), dtype=bool),
        )
        batch["bytes"][...] = rows[:, :-1]  # several times faster than rows[:, :-1].copy()
        available = stops - starts
        short = np.flatnonzero(available <= length)
        for row, end in zip(short.tolist(), available[short].tolist(), strict=True):
            batch["bytes"][row, end:] = 0
            batch["targets"][row, end - 1 :] = NOT_SCORED
        self._mark_documents(batch, starts, stops)
        return batch

    def origin(self, position: int) -> dict[str, Any]:
        """The document in which the window at a position begins, and at which of its bytes."""
        start = int(self._places(np.array([position]))[0][0])
        number = int(self.corpus.offsets.searchsorted(start, side="right")) - 1
        return {"document": self.corpus.names[number], "offset": start - int(self.corpus.offsets[number])}

    def _mark_documents(self, batch: Window, starts: np.ndarray, stops: np.ndarray) -> None:
        """Write document_start, and take back the targets that lie in another document than their input."""
        offsets = self.corpus.offsets
        batch["document_start"][:, 0] = offsets[offsets.searchsorted(starts)] == starts

    def _places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Batches follow one another, so the chunk of the last one is nearly always that of the next.
        numbers = positions // _CHUNK
        if (numbers == numbers[0]).all() and (number := int(numbers[0])) in self._chunks:
            starts, stops = self._chunks[number]
            within = positions - number * _CHUNK
            return starts[within], stops[within]
        self._chunks = {old: chunk for old, chunk in self._chunks.items() if old in numbers}
        starts, stops = np.empty_like(positions), np.empty_like(positions)
        for number in dict.fromkeys(numbers.tolist()):
            if number not in self._chunks:
                self._chunks[number] = self._chunk(np.arange(number * _CHUNK, (number + 1) * _CHUNK))
            here = numbers == number
            within = positions[here] - number * _CHUNK
            starts[here], stops[here] = (places[within] for places in self._chunks[number])
        return starts, stops

    def _chunk(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epochs, indices = np.divmod(positions, len(self))
        parts = [self.spans(int(epoch), indices[epochs == epoch]) for epoch in np.unique(epochs)]
        starts, stops = zip(*parts, strict=True)
        return np.concatenate(starts), np.concatenate(stops)

    def _rows(self, starts: np.ndarray) -> np.ndarray:
        """(b, L + 1) uint8: the corpus from each start on, zeros behind its end."""
        if starts.max() < len(self._every_row):
            return self._every_row[starts]
        rows = np.zeros((len(starts), self.context_length + 1), dtype=np.uint8)
        for row, start in zip(rows, starts, strict=True):
            part = self.corpus.bytes[start : start + len(row)]
            row[: len(part)] = part
        return rows

    @cached_property
    def _every_row(self) -> np.ndarray:
        # A view: row s is bytes[s : s + L + 1], so that numpy copies a whole batch of them in one call.
        data, length = self.corpus.bytes, self.context_length + 1
        if len(data) < length:
            return np.empty((0, length), dtype=np.uint8)
        return np.lib.stride_tricks.as_strided(
            data, (len(data) - length + 1, length), (1, 1), writeable=False
        )

    def __getstate__(self) -> dict[str, Any]:
        # The view is made again in a worker: pickled, it would be L + 1 copies of the corpus.
        return {name: value for name, value in self.__dict__.items() if name != "_every_row"}

    def _shuffled(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        return permuted_array(indices, len(self), hash64(self.seed, epoch))


def num_contiguous_windows(num_bytes: int, context_length: int) -> int:
    """Windows it takes to predict every byte of a document but its first."""
    return -(-max(num_bytes - 1, 0) // context_length)


def random_start(num_bytes: int, context_length: int, seed: int, epoch: int, document: int) -> int:
    """A uniform place for one window in a document, full if the document has context_length + 1 bytes."""
    return hash64(seed, epoch, document) % max(num_bytes - context_length, 1)


class RandomPerDocument(WindowPolicy):
    """Each epoch visits every document once, in shuffled order, through one window at a random place in it.

    MambaByte's training windows (arXiv 2401.13660, section 4): a long book weighs as much as a short one.
    """

    def __init__(self, corpus: ByteCorpus, context_length: int, seed: int) -> None:
        _check_size(corpus, context_length)
        super().__init__(corpus, context_length, seed)
        self._documents = np.flatnonzero(np.diff(corpus.offsets) >= 2)

    def __len__(self) -> int:
        return len(self._documents)

    def spans(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = self._documents[self._shuffled(epoch, indices)]
        begins, ends = self.corpus.offsets[numbers], self.corpus.offsets[numbers + 1]
        places = np.maximum(ends - begins - self.context_length, 1).astype(np.uint64)
        chosen = hash64_each(self.seed, epoch, last=numbers) % places  # random_start of each
        return begins + chosen.astype(np.int64), ends


class Contiguous(WindowPolicy):
    """Each epoch predicts every byte of every document but its first, once: documents are cut in consecutive
    windows, the last one padded, and the windows shuffled."""

    def __init__(self, corpus: ByteCorpus, context_length: int, seed: int) -> None:
        _check_size(corpus, context_length)
        super().__init__(corpus, context_length, seed)
        counts = -(-np.maximum(np.diff(corpus.offsets) - 1, 0) // context_length)
        self._ends = np.cumsum(counts)  # windows up to and including each document

    def __len__(self) -> int:
        return int(self._ends[-1])

    def spans(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = self._shuffled(epoch, indices)
        numbers = np.searchsorted(self._ends, places, side="right")
        before = np.where(numbers, self._ends[numbers - 1], 0)
        offsets = self.corpus.offsets
        return offsets[numbers] + (places - before) * self.context_length, offsets[numbers + 1]


class Packed(WindowPolicy):
    """Each epoch reads every byte once: the documents end to end, in the corpus's order, are cut in windows
    without padding (but for the very last) and the windows shuffled. document_start marks where a document
    begins inside a window, for the model to reset its state there."""

    def __init__(self, corpus: ByteCorpus, context_length: int, seed: int) -> None:
        _check_documents(corpus, context_length)
        super().__init__(corpus, context_length, seed)

    def __len__(self) -> int:
        return num_contiguous_windows(self.corpus.num_bytes, self.context_length)

    def spans(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = self._shuffled(epoch, indices) * self.context_length
        return starts, np.full_like(starts, self.corpus.num_bytes)

    def _mark_documents(self, batch: Window, starts: np.ndarray, stops: np.ndarray) -> None:
        offsets, length = self.corpus.offsets, self.context_length
        # offsets[first:last] of each window: the documents that begin in its bytes or right behind them
        first, last = offsets.searchsorted(starts), offsets.searchsorted(starts + (length + 1))
        counts = last - first
        if not counts.any():
            return
        rows = np.repeat(np.arange(len(starts)), counts)
        numbers = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + first[rows]
        begins = offsets[numbers] - starts[rows]
        inside = begins < np.minimum(length, stops[rows] - starts[rows])
        batch["document_start"][rows[inside], begins[inside]] = True
        behind = begins > 0
        batch["targets"][rows[behind], begins[behind] - 1] = NOT_SCORED


POLICIES: dict[str, Any] = {
    "random_per_document": RandomPerDocument,
    "contiguous": Contiguous,
    "packed": Packed,
}


def window_policy(name: str, corpus: ByteCorpus, context_length: int, seed: int) -> WindowPolicy:
    """The policy that `data.windows` names, over a corpus. Raises UserError when no window can be cut."""
    if name not in POLICIES:
        raise UserError(f"data.windows must be one of {', '.join(POLICIES)}, not {name!r}")
    return POLICIES[name](corpus, context_length, seed)


def _check_documents(corpus: ByteCorpus, context_length: int) -> None:
    if np.diff(corpus.offsets).max(initial=0) < 2:
        raise UserError(
            "no document of the training data holds even 2 bytes, so there is nothing to predict with "
            f"context_length={context_length}"
        )


def _check_size(corpus: ByteCorpus, context_length: int) -> None:
    _check_documents(corpus, context_length)
    if corpus.num_bytes <= context_length:
        raise UserError(
            f"the training data holds {corpus.num_bytes} bytes, less than one window of context_length="
            f"{context_length} and the byte after it; lower context_length or give more data"
        )
