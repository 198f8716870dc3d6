"""The fused CPU addition and norm: calls `mambabyte/ops/cpu/residual_norm.cpp`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from mambabyte.ops.cpu.arguments import call, contiguous, empty, fields, num_threads
from mambabyte.ops.operators import operator


class Arguments(ctypes.Structure):
    """ResidualNormArguments of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_int64, "rows width tasks"),
        *fields(ctypes.c_int32, "threads bfloat16 rms"),
        ("epsilon", ctypes.c_float),
        *fields(ctypes.c_void_p, "residual update weight bias sum out"),
        *fields(ctypes.c_void_p, "grad_out grad_sum grad_residual grad_weight grad_bias"),
    ]


def _run(
    direction: str, residual: Tensor, weight: Tensor, dtype: torch.dtype, epsilon: float, rms: bool,
    **tensors: Tensor | None,
) -> None:  # fmt: skip
    width, threads = residual.shape[-1], num_threads()
    call(
        "residual_norm", direction, Arguments,
        rows=residual.numel() // width, width=width, tasks=threads, threads=threads,
        bfloat16=dtype == torch.bfloat16, rms=rms, epsilon=epsilon,
        residual=residual, weight=contiguous(weight), **tensors,
    )  # fmt: skip


@operator("mambabyte::residual_norm")
def residual_norm_fused(
    residual: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor | None, epsilon: float, rms: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, x = empty(residual.shape, dtype), empty(residual.shape)
    _run(
        "forward", contiguous(residual), weight, dtype, epsilon, rms,
        update=contiguous(update, dtype), bias=contiguous(bias), sum=x, out=out,
    )  # fmt: skip
    return out, x


@residual_norm_fused.register_fake
def _(residual: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    dtype = arguments[-1]
    return residual.new_empty(residual.shape, dtype=dtype), residual.new_empty(residual.shape)


@operator("mambabyte::residual_norm_backward")
def _backward(
    grad_out: Tensor, grad_sum: Tensor, x: Tensor, weight: Tensor, epsilon: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = empty(x.shape)
    grad_weight, grad_bias = torch.empty(2, num_threads(), x.shape[-1])  # a row for each task
    _run(
        "backward", x, weight, grad_out.dtype, epsilon, rms,
        grad_out=grad_out.contiguous(), grad_sum=grad_sum.contiguous(),
        grad_residual=grad_x, grad_weight=grad_weight, grad_bias=grad_bias,
    )  # fmt: skip
    return grad_x, grad_weight.sum(0).to(weight.dtype), grad_bias.sum(0)


@_backward.register_fake
def _(grad_out: Tensor, grad_sum: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    grad_bias = weight.new_empty(weight.shape, dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), grad_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, update, weight, bias, ctx.epsilon, ctx.rms, _ = inputs
    ctx.update_dtype = None if update is None else update.dtype
    ctx.save_for_backward(output[1], weight, bias)


def _differentiate(ctx: Any, grad_out: Tensor, grad_sum: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _backward(grad_out, grad_sum, x, weight, ctx.epsilon, ctx.rms)
    grad_update = None if ctx.update_dtype is None else grad_x.to(ctx.update_dtype)
    grad_bias = None if bias is None else grad_bias.to(bias.dtype)
    return grad_x, grad_update, grad_weight, grad_bias, None, None, None


residual_norm_fused.register_autograd(_differentiate, setup_context=_save)
