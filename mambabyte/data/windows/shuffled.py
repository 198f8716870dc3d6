"""The windows of a prepared corpus, shuffled by a pure function of seed and epoch, so that a position in
training is one integer."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from mambabyte.data.corpus.corpus import ByteCorpus
from mambabyte.data.windows.permutation import SHUFFLE, hash64, permuted
from mambabyte.data.windows.policies import POLICIES, Window, assemble
from mambabyte.errors import UserError

_CHUNK = 1024  # positions whose spans are computed together


class ShuffledWindows:
    """The windows of a corpus, in a new order every epoch; a map-style data set for a data loader.

    Position p of the endless sequence of epochs is window p % len of epoch p // len.

    Args:
        policy: which policy cuts them, a name in POLICIES.
        shuffle: see `permuted`.

    Raises:
        UserError: there is no such policy, or the corpus is too small for a window.
    """

    def __init__(
        self, policy: str, corpus: ByteCorpus, context_length: int, seed: int, shuffle: int = SHUFFLE
    ) -> None:
        if policy not in POLICIES:
            raise UserError(f"data.windows must be one of {', '.join(POLICIES)}, not {policy!r}")
        if np.diff(corpus.offsets).max(initial=0) < 2:
            raise UserError(
                "no document of the training data holds even 2 bytes, so there is nothing to predict with "
                f"context_length={context_length}"
            )
        if policy != "packed" and corpus.num_bytes <= context_length:
            raise UserError(
                f"the training data holds {corpus.num_bytes} bytes, less than one window of context_length="
                f"{context_length} and the byte after it; lower context_length or give more data"
            )
        self.corpus = corpus
        self._policy = POLICIES[policy](corpus.offsets, context_length, seed)
        self._length = len(self._policy)  # makes its index, which forked workers then share
        self._shuffle = shuffle
        self._arguments = policy, corpus, context_length, seed, shuffle
        self._chunks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt in a worker: the view of all rows, if pickled, would be L + 1 copies of the corpus.
        return ShuffledWindows, self._arguments

    def __len__(self) -> int:
        """Windows in an epoch."""
        return self._length

    def window(self, epoch: int, index: int) -> Window:
        """Window ``index`` in the order of an epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"an epoch has {len(self)} windows, and no number {index}")
        batch = self.batch(np.array([epoch * len(self) + index]))
        return Window(
            bytes=batch["bytes"][0], targets=batch["targets"][0], document_start=batch["document_start"][0]
        )

    def batch(self, positions: np.ndarray) -> Window:
        """The windows at (b,) positions of the endless sequence, stacked."""
        starts, stops = self._spans(positions)
        return assemble(self._rows(starts), stops - starts, self._policy.document_begins(starts))

    def __getitems__(self, positions: list[int]) -> Window:
        return self.batch(np.array(positions))

    def origin(self, position: int) -> dict[str, Any]:
        """The document in which the window at a position begins, and the byte offset in it."""
        start = int(self._spans(np.array([position]))[0][0])
        number = int(self.corpus.offsets.searchsorted(start, side="right")) - 1
        return {"document": self.corpus.names[number], "offset": start - int(self.corpus.offsets[number])}

    def _spans(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Consecutive batches nearly always share a chunk.
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
            starts[here], stops[here] = (chunk[within] for chunk in self._chunks[number])
        return starts, stops

    def _chunk(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epochs, indices = np.divmod(positions, len(self))
        spans = []
        for epoch in np.unique(epochs).tolist():
            key = hash64(self._policy.seed, epoch)
            numbers = permuted(indices[epochs == epoch], len(self), key, self._shuffle)
            spans.append(self._policy.spans(epoch, numbers))
        starts, stops = zip(*spans, strict=True)
        return np.concatenate(starts), np.concatenate(stops)

    def _rows(self, starts: np.ndarray) -> np.ndarray:
        """(b, L + 1) uint8: the corpus from each start on, zeros after its end."""
        if starts.max() < len(self._every_row):
            return self._every_row[starts]
        rows = np.zeros((len(starts), self._policy.context_length + 1), dtype=np.uint8)
        for row, start in zip(rows, starts, strict=True):
            part = self.corpus.bytes[start : start + len(row)]
            row[: len(part)] = part
        return rows

    @cached_property
    def _every_row(self) -> np.ndarray:
        # A view: row s is bytes[s : s + L + 1], so that numpy copies a whole batch of them in one call.
        data, length = self.corpus.bytes, self._policy.context_length + 1
        if len(data) < length:
            return np.empty((0, length), dtype=np.uint8)
        return np.lib.stride_tricks.as_strided(
            data, (len(data) - length + 1, length), (1, 1), writeable=False
        )
