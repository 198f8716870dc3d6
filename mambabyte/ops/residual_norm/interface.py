"""The residual stream's addition and the norm that follows it: what stands between two Mamba blocks."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mambabyte.ops.backends import choose_backend
from mambabyte.ops.cpu.arguments import empty, kernel_dtype, num_threads, pointer
from mambabyte.ops.cpu.build import library
from mambabyte.ops.operators import operator


def residual_norm(
    residual: Tensor,
    update: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    rms: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The layer norm (arXiv 1607.06450) or RMS norm (arXiv 1910.07467) of x = residual + update, and x.

    Args:
        residual: (..., d), fp32 or fp64. update: the same shape, or None for zero. weight: (d).
        bias: (d) or None. backend: "reference" or "cpu"; by default the fastest that serves the tensors.

    Returns:
        norm(x) * weight + bias, in autocast's dtype where autocast is on, and x in the residual's dtype.

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot serve these tensors.
    """
    if residual.shape[-1:] != weight.shape or (update is not None and update.shape != residual.shape):
        raise ValueError(
            "residual (..., d), update (..., d) and weight (d) do not fit: "
            f"{[None if t is None else tuple(t.shape) for t in (residual, update, weight)]}"
        )
    device = residual.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else residual.dtype
    if choose_backend("residual_norm", residual.device, residual.dtype, backend) == "cpu":
        out, x = _forward(residual, update, weight, bias, epsilon, rms, kernel_dtype(dtype))
        return out.to(dtype), x
    x = residual if update is None else residual + update.to(residual.dtype)
    with torch.autocast(device, enabled=False):
        if rms:
            out = functional.rms_norm(x, weight.shape, weight.to(x.dtype), epsilon)
            out = out if bias is None else out + bias
        else:
            out = functional.layer_norm(
                x, weight.shape, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), epsilon
            )
    return out.to(dtype), x


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "tasks")),
        *((name, ctypes.c_int32) for name in ("threads", "bfloat16", "rms")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("residual", "update", "weight", "bias", "sum", "out")),
        *((name, ctypes.c_void_p) for name in ("grad_out", "grad_sum", "grad_residual")),
        *((name, ctypes.c_void_p) for name in ("grad_weight", "grad_bias")),
    ]


def _run(direction: str, residual: Tensor, epsilon: float, rms: bool, **tensors: Tensor | None) -> None:
    width = residual.shape[-1]
    rows, threads = residual.numel() // width, num_threads()
    low = tensors["out"] if direction == "forward" else tensors["grad_out"]
    arguments = _Arguments(
        rows=rows,
        width=width,
        tasks=threads,
        threads=threads,
        bfloat16=low is not None and low.dtype == torch.bfloat16,
        rms=rms,
        epsilon=epsilon,
        residual=pointer(residual),
        **{name: pointer(tensor) for name, tensor in tensors.items()},
    )
    getattr(library(), f"mambabyte_residual_norm_{direction}")(ctypes.byref(arguments))


@operator("mambabyte::residual_norm")
def _forward(
    residual: Tensor,
    update: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    rms: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    residual = residual.float().contiguous()
    out, x = empty(residual.shape, dtype), empty(residual.shape)
    _run(
        "forward",
        residual,
        epsilon,
        rms,
        update=None if update is None else update.to(dtype).contiguous(),
        weight=weight.float().contiguous(),
        bias=None if bias is None else bias.float().contiguous(),
        sum=x,
        out=out,
    )
    return out, x


@_forward.register_fake
def _(
    residual: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor | None, epsilon: float, rms: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return residual.new_empty(residual.shape, dtype=dtype), residual.new_empty(residual.shape)


@operator("mambabyte::residual_norm_backward")
def _backward(
    grad_out: Tensor,
    grad_sum: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    rms: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tasks, width = num_threads(), x.shape[-1]
    grad_x = empty(x.shape)
    grad_weight = torch.empty(tasks, width)
    grad_bias = torch.empty(tasks, width)
    _run(
        "backward",
        x,
        epsilon,
        rms,
        weight=weight.float().contiguous(),
        grad_out=grad_out.contiguous(),
        grad_sum=grad_sum.contiguous(),
        grad_residual=grad_x,
        grad_weight=grad_weight,
        grad_bias=grad_bias,
    )
    return grad_x, grad_weight.sum(0).to(weight.dtype), grad_bias.sum(0)


@_backward.register_fake
def _(
    grad_out: Tensor,
    grad_sum: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    rms: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape, dtype=torch.float32),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, update, weight, bias, ctx.epsilon, ctx.rms, ctx.dtype = inputs
    ctx.update_dtype = None if update is None else update.dtype
    ctx.save_for_backward(output[1], weight, bias)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    grad_out = torch.zeros_like(x, dtype=ctx.dtype) if grad_out is None else grad_out
    grad_sum = torch.zeros_like(x) if grad_sum is None else grad_sum
    grad_x, grad_weight, grad_bias = _backward(grad_out, grad_sum, x, weight, bias, ctx.epsilon, ctx.rms)
    grad_update = None if ctx.update_dtype is None else grad_x.to(ctx.update_dtype)
    return (
        grad_x,
        grad_update,
        grad_weight,
        None if bias is None else grad_bias.to(bias.dtype),
        None,
        None,
        None,
    )


_forward.register_autograd(_differentiate, setup_context=_save)
