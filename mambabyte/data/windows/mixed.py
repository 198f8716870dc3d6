"""The windows of a mixture: those of its parts by weight, as a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mambabyte.data.corpus.corpus import ByteCorpus
from mambabyte.data.sources.mixture import BLOCK, parts_of, windows_per_block
from mambabyte.data.windows.permutation import SHUFFLE, hash64, permuted
from mambabyte.data.windows.policies import Window
from mambabyte.data.windows.shuffled import ShuffledWindows
from mambabyte.errors import UserError


class MixedWindows:
    """The windows of a prepared mixture; a map-style data set for a data loader.

    Of every 1,024 consecutive positions each part has a fixed number, by its weight to the nearest window, in
    a shuffled order. Each part's windows come in the order that they would have alone, in epochs of its own:
    a small part with a large weight is read again while a large one is still in its first.

    Args:
        corpus: a prepared mixture.
        weights: of its parts, with a sum of 1.
        policy, context_length, seed, shuffle: as for `ShuffledWindows`.

    Raises:
        UserError: a part is too small for a window.
    """

    def __init__(
        self, policy: str, corpus: ByteCorpus, context_length: int, seed: int, weights: Mapping[str, float],
        shuffle: int = SHUFFLE,
    ) -> None:  # fmt: skip
        self.corpus = corpus
        self._seed, self._shuffle = seed, shuffle
        self._arguments = policy, corpus, context_length, seed, dict(weights), shuffle
        self._counts = windows_per_block(weights)
        self._ends = np.cumsum(list(self._counts.values()))
        self._parts = []
        for name, (first, last) in parts_of(corpus).items():
            try:
                part = ShuffledWindows(policy, corpus.part(first, last), context_length, seed, shuffle)
            except UserError as fault:
                raise UserError(f"data.parts.{name}: {fault}") from fault
            self._parts.append(part)

    def __reduce__(self) -> tuple[Any, ...]:
        return MixedWindows, self._arguments

    def batch(self, positions: np.ndarray) -> Window:
        """The windows at (b,) positions of the endless sequence, stacked."""
        numbers, within = self._places(positions)
        found: list[tuple[np.ndarray, Window]] = []
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            found.append((rows, self._parts[number].batch(within[rows])))
        order = np.argsort(np.concatenate([rows for rows, _ in found]))
        return Window(
            **{  # type: ignore[typeddict-item]
                name: np.concatenate([window[name] for _, window in found])[order]  # type: ignore[literal-required]
                for name in Window.__annotations__
            }
        )

    def __getitems__(self, positions: list[int]) -> Window:
        return self.batch(np.array(positions))

    def origin(self, position: int) -> dict[str, Any]:
        """The document in which the window at a position begins, and the byte offset in it."""
        numbers, within = self._places(np.array([position]))
        return self._parts[int(numbers[0])].origin(int(within[0]))

    def _places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each position the number of its part, and the position in that part's own sequence."""
        blocks, indices = np.divmod(positions, BLOCK)
        slots = np.empty_like(indices)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            slots[here] = permuted(indices[here], BLOCK, hash64(self._seed, block), self._shuffle)
        numbers = np.searchsorted(self._ends, slots, side="right")
        counts = np.array(list(self._counts.values()))
        return numbers, blocks * counts[numbers] + slots - (self._ends - counts)[numbers]
