"""Windows of context_length bytes and their targets, cut from documents that lie end to end in memory.

A window's inputs are bytes [s, s + L) and its targets bytes [s + 1, s + L + 1). A target is never in another
document than its input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TypedDict

import numpy as np

from mambabyte.data.windows.permutation import hash64_each

NOT_SCORED = -100  # torch.nn.functional.cross_entropy's ignore_index


class Window(TypedDict):
    """One window, or a batch of b windows, whose fields have shape (b, L).

    Attributes:
        bytes: (L,) uint8, zeros where the window is padded.
        targets: (L,) int16, the byte after each input byte, -100 where none is scored.
        document_start: (L,) bool, true at the first byte of a document.
    """

    bytes: np.ndarray
    targets: np.ndarray
    document_start: np.ndarray


class WindowPolicy(ABC):
    """Where the windows of an epoch begin and end, in the order of the documents.

    Args:
        offsets: (num_documents + 1,) int64, document i being bytes [offsets[i], offsets[i + 1]).
        context_length: L, in bytes.
        seed: of random offsets.
        identities: (num_documents,) integers that the random offset in each document depends on; by default
            the documents' indices.
    """

    def __init__(
        self, offsets: np.ndarray, context_length: int, seed: int, identities: np.ndarray | None = None
    ) -> None:
        self.offsets, self.context_length, self.seed = offsets, context_length, seed
        self.identities = identities

    @abstractmethod
    def __len__(self) -> int:
        """Windows in an epoch."""

    @abstractmethod
    def spans(self, epoch: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the windows of these (n,) numbers lie.

        Returns:
            (starts, stops), (n,) int64: where each begins, and where the bytes that it may read end, which
            can be far beyond the window.
        """

    def document_begins(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents that begin in the windows at ``starts``, or right after them.

        Returns:
            (rows, begins): a document begins at byte begins[i], at most L, of the window at starts[rows[i]].
        """
        # A window of one document: only its first byte can begin one.
        rows = np.flatnonzero(self.offsets[self.offsets.searchsorted(starts)] == starts)
        return rows, np.zeros_like(rows)


class RandomPerDocument(WindowPolicy):
    """One window, at a random offset, of every document of at least 2 bytes; full if the document is long
    enough.

    MambaByte's training windows (arXiv 2401.13660, section 4): a long book counts as much as a short one.
    """

    @cached_property
    def _documents(self) -> np.ndarray:
        return np.flatnonzero(np.diff(self.offsets) >= 2)

    def __len__(self) -> int:
        return len(self._documents)

    def spans(self, epoch: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        documents = self._documents[numbers]
        begins, ends = self.offsets[documents], self.offsets[documents + 1]
        choices = np.maximum(ends - begins - self.context_length, 1).astype(np.uint64)
        identities = documents if self.identities is None else self.identities[documents]
        return begins + (hash64_each(self.seed, epoch, last=identities) % choices).astype(np.int64), ends


class Contiguous(WindowPolicy):
    """Consecutive windows of each document, the last one padded: every byte except a document's first is
    predicted once."""

    @cached_property
    def _ends(self) -> np.ndarray:
        """(num_documents,) windows up to and including each document."""
        return np.cumsum(num_windows(np.diff(self.offsets), self.context_length))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def spans(self, epoch: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        documents = np.searchsorted(self._ends, numbers, side="right")
        before = np.where(documents, self._ends[documents - 1], 0)
        starts = self.offsets[documents] + (numbers - before) * self.context_length
        return starts, self.offsets[documents + 1]


class Packed(WindowPolicy):
    """Consecutive windows of all documents end to end, of which only the last is padded: every byte is read
    once. document_start marks where a document begins inside a window, so that the model resets its state."""

    def __len__(self) -> int:
        return int(num_windows(self.offsets[-1], self.context_length))

    def spans(self, epoch: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return numbers * self.context_length, np.full_like(numbers, self.offsets[-1])

    def document_begins(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = self.offsets.searchsorted(starts)
        counts = self.offsets.searchsorted(starts + (self.context_length + 1)) - first
        rows = np.repeat(np.arange(len(starts)), counts)
        numbers = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + first[rows]
        return rows, self.offsets[numbers] - starts[rows]


POLICIES: dict[str, type[WindowPolicy]] = {
    "random_per_document": RandomPerDocument,
    "contiguous": Contiguous,
    "packed": Packed,
}


def num_windows(num_bytes: np.ndarray | int, context_length: int) -> np.ndarray:
    """Consecutive windows that it takes to predict all bytes except the first."""
    return -(-np.maximum(num_bytes - 1, 0) // context_length)


def assemble(rows: np.ndarray, available: np.ndarray, begins: tuple[np.ndarray, np.ndarray]) -> Window:
    """A batch of windows, padded, without targets in another document than their input.

    Args:
        rows: (b, L + 1) uint8, the bytes from the start of each window on.
        available: (b,) how many bytes the window may read; the rest of its row is ignored.
        begins: what `WindowPolicy.document_begins` returns.
    """
    length = rows.shape[1] - 1
    batch = Window(
        bytes=np.empty((len(rows), length), dtype=np.uint8),
        targets=rows[:, 1:].astype(np.int16),
        document_start=np.zeros((len(rows), length), dtype=bool),
    )
    batch["bytes"][...] = rows[:, :-1]  # several times faster than rows[:, :-1].copy()
    short = np.flatnonzero(available <= length)
    for row, end in zip(short.tolist(), available[short].tolist(), strict=True):
        batch["bytes"][row, end:] = 0
        batch["targets"][row, end - 1 :] = NOT_SCORED
    windows, columns = begins
    inside = columns < np.minimum(length, available[windows])
    batch["document_start"][windows[inside], columns[inside]] = True
    later = columns > 0
    batch["targets"][windows[later], columns[later] - 1] = NOT_SCORED
    return batch
