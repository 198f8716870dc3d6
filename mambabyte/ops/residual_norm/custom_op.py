"""The fused norms as PyTorch operators: see `mambabyte.ops.operators`.

A fused backend is a module of this package (cpu, triton) with two functions, where x is residual + update:

    forward(residual, update, weight, bias, epsilon, rms, dtype) -> the norm in `dtype`, x in fp32
    backward(grad_out, grad_x, x, weight, bias, epsilon, rms, update_dtype)
        -> the gradients of residual in fp32, of update in `update_dtype` or None, of weight, of bias or None

`grad_x` is None where nothing depends on x. `update_dtype` is None without an update, and where the update's
gradient is that of the residual.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mambabyte.ops.operators import operator


@functools.cache
def _backend(name: str) -> Any:
    return import_module(f"mambabyte.ops.residual_norm.{name}")


@operator("mambabyte::residual_norm")
def residual_norm_fused(
    residual: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor | None, epsilon: float, rms: bool,
    dtype: torch.dtype, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _backend(backend).forward(residual, update, weight, bias, epsilon, rms, dtype)


@residual_norm_fused.register_fake
def _(residual: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    dtype = arguments[-2]
    x = residual.new_empty(residual.shape, dtype=torch.float32)
    return residual.new_empty(residual.shape, dtype=dtype), x


@operator("mambabyte::residual_norm_backward")
def _backward(
    grad_out: Tensor, grad_x: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float,
    rms: bool, update_dtype: torch.dtype | None, backend: str,
) -> list[Tensor]:  # fmt: skip
    gradients = _backend(backend).backward(grad_out, grad_x, x, weight, bias, epsilon, rms, update_dtype)
    return [x.new_empty(0) if gradient is None else gradient for gradient in gradients]


@_backward.register_fake
def _(grad_out: Tensor, grad_x: Tensor | None, x: Tensor, *arguments: Any) -> list[Tensor]:
    weight, bias, _, _, update_dtype, _ = arguments
    return [
        x.new_empty(x.shape),
        x.new_empty(0) if update_dtype is None else x.new_empty(x.shape, dtype=update_dtype),
        weight.new_empty(weight.shape),
        x.new_empty(0) if bias is None else bias.new_empty(bias.shape),
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, update, weight, bias, ctx.epsilon, ctx.rms, _, ctx.backend = inputs
    ctx.update_dtype = None if update is None else update.dtype
    ctx.save_for_backward(output[1], weight, bias)
    ctx.out_dtype = output[0].dtype
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_x: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(x, dtype=ctx.out_dtype)
    other_dtype = None if ctx.update_dtype == x.dtype else ctx.update_dtype
    grad_residual, grad_update, grad_weight, grad_bias = _backward(
        grad_out, grad_x, x, weight, bias, ctx.epsilon, ctx.rms, other_dtype, ctx.backend
    )
    if other_dtype is None:
        grad_update = None if ctx.update_dtype is None else grad_residual
    grad_bias = None if bias is None else grad_bias
    return grad_residual, grad_update, grad_weight, grad_bias, None, None, None, None


residual_norm_fused.register_autograd(_differentiate, setup_context=_save)
