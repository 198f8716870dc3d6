"""Windows by their place in training: which of them make a batch, and what a trainer iterates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mambabyte.data.windows.policies import Window, WindowPolicy

Batch = dict[str, Any]


def as_tensors(batch: Any) -> Batch:
    """A policy's batch as tensors, which share its memory."""
    return {name: torch.from_numpy(array) for name, array in batch.items()}


class IndexedWindows(Dataset):
    """Windows by their place in the endless sequence of epochs; a data loader fetches a batch at once."""

    def __init__(self, policy: WindowPolicy) -> None:
        self.policy = policy

    def __getitem__(self, position: int) -> Window:
        return self.policy.window(*divmod(position, len(self.policy)))

    def __getitems__(self, positions: list[int]) -> Window:
        return self.policy.batch(np.array(positions))


class Positions:
    """The places of one rank's micro-batches, from an optimizer step on; max_steps < 0 means no end."""

    def __init__(
        self,
        step: int,
        max_steps: int,
        global_batch_size: int,
        micro_batch_size: int,
        world_size: int,
        rank: int,
    ) -> None:
        self.steps: Iterable[int] = range(step, max_steps) if max_steps >= 0 else count(step)
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.stride = micro_batch_size * world_size
        self.first = rank * micro_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = step * self.global_batch_size
            for begin in range(start + self.first, start + self.global_batch_size, self.stride):
                yield list(range(begin, begin + self.micro_batch_size))


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
            raise TypeError("training has no max_steps, so its batches have no end")
        return self._num_batches

    # Lightning warns about loaders that cannot resume unless they have these two; ours has nothing to keep.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
