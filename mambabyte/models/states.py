"""Rows of a model's state, a tree of lists and tuples of tensors whose first dimension is the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mambabyte.models.byte_lm import ByteLM


def map_tensors(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Apply ``function`` to the tensors that stand at the same place in states of one structure."""
    first = trees[0]
    if isinstance(first, (list, tuple)):
        return type(first)(map_tensors(function, *children) for children in zip(*trees, strict=True))
    return function(*trees)


def select_rows(state: Any, rows: Sequence[int]) -> Any:
    """The state of these rows of the batch, in this order."""
    index = torch.tensor(rows, dtype=torch.int64)
    return map_tensors(lambda tensor: tensor[index.to(tensor.device)], state)


def restart_rows(state: Any, model: ByteLM, rows: Sequence[int]) -> Any:
    """The state with the named rows set to the state before any byte."""
    if not rows:
        return state
    fresh = model.initial_state(len(rows))

    def restart(carried: Tensor, new: Tensor) -> Tensor:
        return carried.index_copy(0, torch.tensor(rows, device=carried.device), new.to(carried.dtype))

    return map_tensors(restart, state, fresh)
