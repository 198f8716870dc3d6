"""What the model sees: windows of context_length bytes cut from documents by a named policy.

A window's inputs are bytes [s, s + L) and its targets bytes [s + 1, s + L + 1); a target never lies in
another document than its input. Every policy is a pure map from (seed, epoch, index) to a window, so a
position in training is one integer.
"""

from __future__ import annotations

from typing import Any, Protocol, TypedDict

import numpy as np

from mambabyte.data.permutation import hash64, permuted
from mambabyte.data.prepared import ByteCorpus
from mambabyte.errors import UserError

NOT_SCORED = -100  # torch.nn.functional.cross_entropy's ignore_index


class Window(TypedDict):
    """bytes: (L,) uint8, zeros where the window is padded; targets: (L,) int64, the byte after each input
    byte, -100 where none is scored; document_start: (L,) bool, true where a document's first byte stands."""

    bytes: np.ndarray
    targets: np.ndarray
    document_start: np.ndarray


class WindowPolicy(Protocol):
    corpus: ByteCorpus

    def __len__(self) -> int:
        """Windows in an epoch."""
        ...

    def window(self, epoch: int, index: int) -> Window:
        """The index-th window of an epoch, in that epoch's shuffled order."""
        ...


def cut(document: np.ndarray, start: int, context_length: int) -> Window:
    """The window that begins at `start` of one document, a uint8 array; what is missing behind is padded."""
    inputs = document[start : start + context_length]
    following = document[start + 1 : start + 1 + context_length]
    window = Window(
        bytes=np.zeros(context_length, dtype=np.uint8),
        targets=np.full(context_length, NOT_SCORED, dtype=np.int64),
        document_start=np.zeros(context_length, dtype=bool),
    )
    window["bytes"][: len(inputs)] = inputs
    window["targets"][: len(following)] = following
    window["document_start"][0] = start == 0
    return window


def num_contiguous_windows(num_bytes: int, context_length: int) -> int:
    """Windows it takes to predict every byte of a document but its first."""
    return -(-max(num_bytes - 1, 0) // context_length)


def random_start(num_bytes: int, context_length: int, seed: int, epoch: int, document: int) -> int:
    """A uniform place for one window in a document, full if the document has context_length + 1 bytes."""
    return hash64(seed, epoch, document) % max(num_bytes - context_length, 1)


class RandomPerDocument:
    """Each epoch visits every document once, in shuffled order, through one window at a random place in it.

    MambaByte's training windows (arXiv 2401.13660, section 4): a long book weighs as much as a short one.
    """

    def __init__(self, corpus: ByteCorpus, context_length: int, seed: int) -> None:
        _check_size(corpus, context_length)
        self.corpus, self.context_length, self.seed = corpus, context_length, seed
        self._documents = np.flatnonzero(np.diff(corpus.offsets) >= 2)

    def __len__(self) -> int:
        return len(self._documents)

    def window(self, epoch: int, index: int) -> Window:
        number = int(self._documents[permuted(index, len(self), hash64(self.seed, epoch))])
        document = self.corpus.document(number)
        start = random_start(len(document), self.context_length, self.seed, epoch, number)
        return cut(document, start, self.context_length)


class Contiguous:
    """Each epoch predicts every byte of every document but its first, once: documents are cut in consecutive
    windows, the last one padded, and the windows shuffled."""

    def __init__(self, corpus: ByteCorpus, context_length: int, seed: int) -> None:
        _check_size(corpus, context_length)
        self.corpus, self.context_length, self.seed = corpus, context_length, seed
        counts = -(-np.maximum(np.diff(corpus.offsets) - 1, 0) // context_length)
        self._ends = np.cumsum(counts)  # windows up to and including each document

    def __len__(self) -> int:
        return int(self._ends[-1])

    def window(self, epoch: int, index: int) -> Window:
        place = permuted(index, len(self), hash64(self.seed, epoch))
        number = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return cut(self.corpus.document(number), (place - before) * self.context_length, self.context_length)


class Packed:
    """Each epoch reads every byte once: the documents end to end, in the corpus's order, are cut in windows
    without padding (but for the very last) and the windows shuffled. document_start marks where a document
    begins inside a window, for the model to reset its state there."""

    def __init__(self, corpus: ByteCorpus, context_length: int, seed: int) -> None:
        _check_documents(corpus, context_length)
        self.corpus, self.context_length, self.seed = corpus, context_length, seed

    def __len__(self) -> int:
        return num_contiguous_windows(self.corpus.num_bytes, self.context_length)

    def window(self, epoch: int, index: int) -> Window:
        start = permuted(index, len(self), hash64(self.seed, epoch)) * self.context_length
        window = cut(self.corpus.bytes, start, self.context_length)
        offsets = self.corpus.offsets
        end = start + self.context_length
        first, last = np.searchsorted(offsets, [start, end + 1])
        starts = offsets[first:last] - start  # documents that begin in bytes [start, end]
        window["document_start"][:] = False
        window["document_start"][starts[starts < min(self.context_length, self.corpus.num_bytes - start)]] = (
            True
        )
        window["targets"][starts[starts > 0] - 1] = NOT_SCORED
        return window


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
