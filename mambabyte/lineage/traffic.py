"""The bytes that a function moves and keeps, counted without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(NamedTuple):
    """Bytes: the inputs and outputs of each pass's operators, and what is kept between the two. What a kernel
    writes for itself and reads again is not counted."""

    forward: int
    kept: int
    backward: int


class _Counting(TorchDispatchMode):
    moved = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, (Tensor, tuple, list)) and not function.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.moved += sum(x.numel() * x.element_size() for x in tensors)
        return out


def count_traffic(function: Callable[..., Any], *inputs: Tensor) -> Traffic:
    """Of `function(*inputs)`, a tensor, and of the gradients of all inputs. Nothing is computed: fake tensors
    have shapes and no data."""
    kept = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with FakeTensorMode():
        leaves = [torch.empty(x.shape, dtype=x.dtype, requires_grad=True) for x in inputs]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), _Counting() as forward:
            out = function(*leaves)
        gradient = torch.empty_like(out)
        with _Counting() as backward:
            torch.autograd.grad(out, leaves, gradient)
    return Traffic(forward.moved, sum(kept.values()), backward.moved)
