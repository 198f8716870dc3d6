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
    moved: int  # bytes that operators read and write in forward
    kept: int  # bytes that are kept for backward


class _Counting(TorchDispatchMode):
    moved = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, (Tensor, tuple)) and not function.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.moved += sum(x.numel() * x.element_size() for x in tensors)
        return out


def count_traffic(function: Callable[..., Any], *inputs: Tensor) -> Traffic:
    """Of `function(*inputs)` where gradients of all inputs are wanted. Nothing is computed: fake tensors have
    shapes and no data."""
    kept = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with FakeTensorMode():
        leaves = [torch.empty(x.shape, dtype=x.dtype, requires_grad=True) for x in inputs]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), _Counting() as counting:
            out = function(*leaves)  # alive until all is counted, as a storage's address may be used again
    del out
    return Traffic(counting.moved, sum(kept.values()))
