"""Windows of context_length bytes and their targets, cut from documents that lie end to end in memory.

A window's inputs are bytes [s, s + L) and its targets bytes [s + 1, s + L + 1). A target never lies in another
document than its input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
        seed: of random places.
        identities: (num_documents,) integers that the random place in each document depends on; the documents'
            numbers by default.
    """

    def __init__(
        self, offsets: np.ndarray, context_length: int, seed: int, identities: np.ndarray | None = None
    ) -> None:
        self.offsets, self.context_length, self.seed = offsets, context_length, seed
        self.identities = identities
        self._index()

    def _index(self) -> None:
        """Prepare what `spans` looks up."""

    @abstractmethod
    def __len__(self) -> int:
        """Windows in an epoch."""

    @abstractmethod
    def spans(self, epoch: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, stops), (n,) int64: where the windows of these (n,) numbers begin, and where the bytes they
        may read end, however far away that is."""

    def document_begins(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, begins): document starts at begins[i] in the window of starts[rows[i]], or right after it
        (begins[i] = L). Here, where windows lie in one document, the start of the window alone can be one."""
        rows = np.flatnonzero(self.offsets[self.offsets.searchsorted(starts)] == starts)
        return rows, np.zeros_like(rows)


class RandomPerDocument(WindowPolicy):
    """One window at a random place in every document of at least 2 bytes, full if the document is long enough.

    MambaByte's training windows (arXiv 2401.13660, section 4): a long book weighs as much as a short one.
    """

    def _index(self) -> None:
        self._documents = np.flatnonzero(np.diff(self.offsets) >= 2)

    def __len__(self) -> int:
        return len(self._documents)

    def spans(self, epoch: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        documents = self._documents[numbers]
        begins, ends = self.offsets[documents], self.offsets[documents + 1]
        places = np.maximum(ends - begins - self.context_length, 1).astype(np.uint64)
        hashed = documents if self.identities is None else self.identities[documents]
        return begins + (hash64_each(self.seed, epoch, last=hashed) % places).astype(np.int64), ends


class Contiguous(WindowPolicy):
    """Documents cut in consecutive windows, the last one of each padded: every byte of a document but its
    first is predicted once."""

    def _index(self) -> None:
        # windows up to and including each document
        self._ends = np.cumsum(num_windows(np.diff(self.offsets), self.context_length))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def spans(self, epoch: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        documents = np.searchsorted(self._ends, numbers, side="right")
        before = np.where(documents, self._ends[documents - 1], 0)
        starts = self.offsets[documents] + (numbers - before) * self.context_length
        return starts, self.offsets[documents + 1]


class Packed(WindowPolicy):
    """All documents end to end, cut in windows without padding, except for the last: every byte is read once.
    document_start marks where a document begins inside a window, for the model to reset its state there."""

    def __len__(self) -> int:
        return int(num_windows(self.offsets[-1], self.context_length))

    def spans(self, epoch: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return numbers * self.context_length, np.full_like(numbers, self.offsets[-1])

    def document_begins(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # offsets[first:last] of each window: the documents that begin in it or right after it
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
    """Consecutive windows it takes to predict all bytes but the first."""
    return -(-np.maximum(num_bytes - 1, 0) // context_length)


def assemble(rows: np.ndarray, available: np.ndarray, begins: tuple[np.ndarray, np.ndarray]) -> Window:
    """A batch of windows: pads them, and takes back the targets that lie in another document than their input.

    Args:
        rows: (b, L + 1) uint8, the bytes from the start of each window.
        available: (b,) how many of them the window may read, if less than L + 1; the others are ignored.
        begins: as from `WindowPolicy.document_begins`.
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
    windows, places = begins
    inside = places < np.minimum(length, available[windows])
    batch["document_start"][windows[inside], places[inside]] = True
    later = places > 0
    batch["targets"][windows[later], places[later] - 1] = NOT_SCORED
    return batch
