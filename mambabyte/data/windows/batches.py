"""Which positions make up a batch, and what Lightning iterates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch

Batch = dict[str, Any]


def as_tensors(batch: Any) -> Batch:
    """The arrays of a `policies.Window` as tensors, which share their memory."""
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def step_positions(
    step: int, max_steps: int | None, global_batch_size: int, micro_batch_size: int, rank: int, ranks: int
) -> Iterator[list[int]]:
    """The positions of one rank's micro-batches, from optimizer step to max_steps (None: endless)."""
    for number in count(step) if max_steps is None else range(step, max_steps):
        start, end = number * global_batch_size, (number + 1) * global_batch_size
        for begin in range(start + rank * micro_batch_size, end, micro_batch_size * ranks):
            yield list(range(begin, begin + micro_batch_size))


class StepLoader:
    """What Lightning iterates. Each iteration begins at the trainer's global_step of that moment.

    Not a torch DataLoader, so that Lightning leaves its order alone. Its length counts the whole run's
    micro-batches, the trained ones included, since Lightning counts those too after a resume; with a length,
    no batch is fetched ahead of the one being trained.
    """

    def __init__(self, batches: Callable[[], Iterator[Batch]], num_batches: int | None) -> None:
        self._batches = batches
        self._num_batches = num_batches

    def __iter__(self) -> Iterator[Batch]:
        return self._batches()

    def __len__(self) -> int:
        if self._num_batches is None:
            raise TypeError("training has no max_steps, so its batches are endless")
        return self._num_batches

    # Without these two, Lightning warns that the loader cannot resume. There is nothing to keep.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
