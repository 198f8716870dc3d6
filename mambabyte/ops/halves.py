"""The two halves of a tensor, whose gradients are written where they make up one tensor.

PyTorch copies both into a third. Here the operator whose backward pass comes first may write the gradient of
the second half into the second half of a new tensor (`GradientPlace.begin`), and a later one that of the
first into the first (`GradientPlace.join`). Where either does not, the gradients are copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambabyte.ops.cpu.arguments import empty


class GradientPlace:
    """Where the gradient of one half belongs. `node` is that of `halves`."""

    def __init__(self, node: Any, second: bool) -> None:
        self._node, self._second = node, second

    def begin(self, gradient: Tensor) -> Tensor:
        """The second half of a new tensor of rows twice as wide as `gradient`'s, for its values."""
        assert self._second
        shape = (*gradient.shape[:-1], 2 * gradient.shape[-1])
        on_cpu = type(gradient) is Tensor and gradient.device.type == "cpu"
        self._node.whole = empty(shape, gradient.dtype) if on_cpu else gradient.new_empty(shape)
        return self._node.whole.chunk(2, dim=-1)[1]

    def join(self) -> Tensor | None:
        """The first half of the tensor that the other gradient has begun, once; None if none has."""
        assert not self._second
        whole, self._node.joined = self._node.whole, self._node.whole
        self._node.whole = None
        return None if whole is None else whole.chunk(2, dim=-1)[0]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The halves (..., D) of x (..., 2 D), which are views of it."""
    apart = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if apart or not (x.requires_grad and torch.is_grad_enabled()):
        first, second = x.chunk(2, dim=-1)
        return first, second
    first, second = _Halves.apply(x)
    for half in (first, second):
        half._gradient_place = GradientPlace(first.grad_fn, half is second)
    return first, second


def gradient_place(x: Tensor | None) -> GradientPlace | None:
    """That of a half; None of any other tensor."""
    return getattr(x, "_gradient_place", None)


class _Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.whole = ctx.joined = None
        return x.chunk(2, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        whole, ctx.whole, ctx.joined = ctx.joined, None, None
        if whole is not None and all(map(_is, (first, second), whole.chunk(2, dim=-1))):
            return whole
        return _together(first, second)


def _together(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], dim=-1)


def _is(gradient: Tensor, half: Tensor) -> bool:
    """Whether they are the same memory."""
    same_storage = gradient.untyped_storage()._cdata == half.untyped_storage()._cdata
    return (
        same_storage
        and gradient.storage_offset() == half.storage_offset()
        and gradient.stride() == half.stride()
    )
