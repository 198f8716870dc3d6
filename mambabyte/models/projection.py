"""A Mamba block's parameters as it computes with them, sparing on CUDA what autocast does for each of them.

Autocast rounds each weight to bf16 by a kernel of its own, rounds its gradient to bf16 too and converts that
back. Here all weights of a model are rounded at once, and the product for a weight's gradient writes fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from mambabyte.models.layers import as_residual
from mambabyte.ops import recomputation
from mambabyte.ops.recomputation import recomputable, recomputable_as, save, saved

# Where bf16 matrices have a product in fp32.
WIDE_PRODUCTS = {"cuda"} if "dtype" in torch.ops.aten.mm.overloads() else set()
_prepared: ContextVar[dict[int, Tensor] | None] = ContextVar("prepared", default=None)  # by parameters' ids


class Projection(nn.Linear):
    """x (..., in) -> x W^T (..., out). A bias, if there is one, is left to the caller.

    Args:
        recompute: whether backward computes the output again, where it is so cheap.
    """

    def __init__(self, width_in: int, width_out: int, bias: bool = False, recompute: bool = False) -> None:
        super().__init__(width_in, width_out, bias)
        self._recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        if not _takes_part(self.weight):
            return linear(x, self.weight)
        rounded = (_prepared.get() or {}).get(id(self.weight))
        if rounded is None:
            rounded = self.weight.detach().to(_arithmetic(self.weight))
        x = x.to(rounded.dtype)
        product = _Product.apply(x, self.weight, rounded)
        return recomputable(product, linear, x, rounded) if self._recompute else product


def used_again(x: Tensor, product: Tensor) -> Tensor:
    """x, which a projection has taken to `product`, for another use. A `Projection` adds the gradient of that
    use within its own product; PyTorch would add the two by a kernel of its own."""
    if not _takes_part(x) or not isinstance(product.grad_fn, _Product._backward_cls):
        return x
    return recomputable_as(x, _UsedAgain.apply(x, product.grad_fn))


def minus_exp(x: Tensor) -> Tensor:
    """-exp(x) in fp32, or fp64 where x is."""
    if not _takes_part(x):
        return -torch.exp(as_residual(x))
    known = (_prepared.get() or {}).get(id(x))
    return _MinusExp.apply(x)[0] if known is None else known


def prepared_at_once(weights: Sequence[Tensor], exponents: Sequence[Tensor]) -> AbstractContextManager[None]:
    """Within the context, a `Projection` finds its weight rounded if it is one of `weights`, and `minus_exp`
    its result if it is asked for one of `exponents`: a few kernels for all of them.

    Sharded parameters, which are gathered block by block, are left out.
    """
    sharded = hasattr(exponents[0], "to_local")  # a DTensor
    if sharded or not _takes_part(exponents[0]):
        return nullcontext()
    return _prepared_at_once(weights, exponents)


@contextmanager
def _prepared_at_once(weights: Sequence[Tensor], exponents: Sequence[Tensor]) -> Iterator[None]:
    given = rounded = [weight.detach() for weight in weights]
    dtypes = [_arithmetic(weight) for weight in weights]
    if dtypes != [weight.dtype for weight in given]:
        rounded = [torch.empty_like(w, dtype=dtype) for w, dtype in zip(given, dtypes, strict=True)]
        torch._foreach_copy_(rounded, given)
    found = zip((*weights, *exponents), (*rounded, *_MinusExp.apply(*exponents)), strict=True)
    token = _prepared.set({id(parameter): tensor for parameter, tensor in found})
    try:
        yield
    finally:
        _prepared.reset(token)


def _takes_part(parameter: Tensor) -> bool:
    return (
        parameter.device.type in recomputation.DEVICES
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _arithmetic(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rounded: Tensor) -> Tensor:
        # of a frozen weight no gradient is asked
        save(ctx, x if ctx.needs_input_grad[1] else None, rounded)
        ctx.weight_dtype = weight.dtype
        ctx.further, ctx.late = None, False
        return linear(x, rounded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, rounded = saved(ctx)
        rows, further, ctx.further = grad.flatten(0, -2), ctx.further, None
        grad_x = grad_weight = None
        if further is not None:
            grad_x = torch.addmm(further.flatten(0, -2), rows, rounded).view_as(further)
        elif ctx.needs_input_grad[0]:
            ctx.late = True
            grad_x = grad @ rounded
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(rows, x.flatten(0, -2), ctx.weight_dtype)
        return grad_x, grad_weight, None


def _weight_gradient(grad: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    if grad.dtype != dtype and grad.device.type in WIDE_PRODUCTS:
        return torch.mm(grad.t(), x, out_dtype=dtype)
    return (grad.t() @ x).to(dtype)


class _UsedAgain(torch.autograd.Function):
    """Leaves its gradient to the product's node, which PyTorch runs later, as it was made earlier; keeps it
    where that has run already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, node: Any) -> Tensor:
        ctx.node = node
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        if ctx.node.late:
            ctx.node.late = False
            return grad, None
        ctx.node.further = grad
        return None, None


class _MinusExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = torch._foreach_exp([as_residual(x) for x in tensors])
        torch._foreach_neg_(results)
        # Not by save_for_backward: a block whose activations are computed again must save as much then, when
        # its rates are not prepared.
        ctx.results = [result.detach() for result in results]
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch._foreach_mul(grads, ctx.results))
