"""Rows of a model's state, which is a tree of lists and tuples of tensors with the batch dimension first."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mambabyte.models.byte_lm import ByteLM


def map_tensors(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Apply ``function`` to the corresponding tensors of states with the same structure."""
    first = trees[0]
    if isinstance(first, (list, tuple)):
        return type(first)(map_tensors(function, *children) for children in zip(*trees, strict=True))
    return function(*trees)


def select_rows(state: Any, rows: Sequence[int]) -> Any:
    """The state of these rows of the batch, in this order."""
    index = torch.tensor(rows, dtype=torch.int64)
    return map_tensors(lambda tensor: tensor[index.to(tensor.device)], state)


def join_rows(states: Sequence[Any]) -> Any:
    """The rows of all these states, in order, as one state.

    Raises:
        ValueError: their tensors differ in shape, as caches of different lengths do.
    """
    if len({row_shapes(state) for state in states}) > 1:
        raise ValueError("rows with caches of different lengths are not one state")
    return states[0] if len(states) == 1 else map_tensors(lambda *tensors: torch.cat(tensors), *states)


def row_shapes(state: Any) -> Any:
    """The shapes of the state's tensors without the batch, in nested tuples."""
    return tuple(map(row_shapes, state)) if isinstance(state, (list, tuple)) else tuple(state.shape[1:])


def restart_rows(state: Any, model: ByteLM, rows: Sequence[int]) -> Any:
    """The state with these rows reset to the state before any byte."""
    if not rows:
        return state
    fresh = model.initial_state(len(rows))

    def restart(carried: Tensor, new: Tensor) -> Tensor:
        return carried.index_copy(0, torch.tensor(rows, device=carried.device), new.to(carried.dtype))

    return map_tensors(restart, state, fresh)
