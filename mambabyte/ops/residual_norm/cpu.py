"""The fused CPU addition and norm: calls `mambabyte/ops/cpu/residual_norm.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mambabyte.ops.cpu.arguments import call, contiguous, empty, fields, kernel_dtype, num_threads


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


def forward(
    residual: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor | None, epsilon: float, rms: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The norm in `dtype` and the sum in fp32: see `mambabyte.ops.residual_norm.custom_op`."""
    out, x = empty(residual.shape, kernel_dtype(dtype)), empty(residual.shape)
    _run(
        "forward", contiguous(residual), weight, out.dtype, epsilon, rms,
        update=contiguous(update, out.dtype), bias=contiguous(bias), sum=x, out=out,
    )  # fmt: skip
    return out.to(dtype), x


def backward(
    grad_out: Tensor, grad_x: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float,
    rms: bool, update_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of residual, update, weight and bias: see `mambabyte.ops.residual_norm.custom_op`."""
    grad_residual = empty(x.shape)
    grad_weight, grad_bias = torch.empty(2, num_threads(), x.shape[-1])  # a row for each task
    dtype = kernel_dtype(grad_out.dtype)
    _run(
        "backward", x, weight, dtype, epsilon, rms, grad_out=contiguous(grad_out, dtype),
        grad_sum=torch.zeros_like(x) if grad_x is None else contiguous(grad_x), grad_residual=grad_residual,
        grad_weight=grad_weight, grad_bias=grad_bias,
    )  # fmt: skip
    return (
        grad_residual,
        None if update_dtype is None else grad_residual.to(update_dtype),
        grad_weight.sum(0).to(weight.dtype),
        None if bias is None else grad_bias.sum(0).to(bias.dtype),
    )
