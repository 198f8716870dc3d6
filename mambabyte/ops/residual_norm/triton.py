"""The residual addition and norm on CUDA: launches the kernels of `triton_kernels.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambabyte.ops.residual_norm.triton_kernels import backward_kernel, forward_kernel, triton
from mambabyte.ops.triton.kernels import multiprocessors, sum_partials

PROGRAMS = 8  # of the backward pass, for each multiprocessor
WIDEST = 8192  # channels that the registers of a program hold


def cannot_serve(*, width: int, **_: Any) -> str | None:
    """Why the kernels cannot take rows of this width, or None."""
    return None if width <= WIDEST else f"it takes at most {WIDEST:,} channels, not {width:,}"


def _shape(width: int) -> dict[str, int]:
    """A row's padded width and its warps. Four channels a lane are sixteen bytes of fp32, so that Triton
    gives every tensor of a row the same lanes."""
    block = max(32, triton.next_power_of_2(width))
    return {"BLOCK": block, "num_warps": min(max(block // 128, 1), 32)}


def forward(
    residual: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor | None, epsilon: float, rms: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The norm in `dtype` and the sum in fp32: see `mambabyte.ops.residual_norm.custom_op`."""
    width = residual.shape[-1]
    total = residual.new_empty(residual.shape, dtype=torch.float32)
    out = residual.new_empty(residual.shape, dtype=dtype)
    update = None if update is None else update.contiguous()
    with torch.cuda.device_of(residual):
        forward_kernel[(residual.numel() // width,)](
            residual.float().contiguous(), update, weight.contiguous(),
            None if bias is None else bias.contiguous(), out, total, width, epsilon, RMS=rms, **_shape(width),
        )  # fmt: skip
    return out, total


def backward(
    grad_out: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, bias: Tensor | None,
    epsilon: float, rms: bool, update_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of residual, update, weight and bias: see `mambabyte.ops.residual_norm.custom_op`."""
    width = total.shape[-1]
    rows = total.numel() // width
    programs = min(rows, PROGRAMS * multiprocessors(total.device))
    grad_residual = torch.empty_like(total)
    grad_update = None if update_dtype is None else torch.empty_like(total, dtype=update_dtype)
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    grad_bias = None if bias is None else torch.empty_like(bias, memory_format=torch.contiguous_format)
    partial = total.new_empty(programs, 1 if bias is None else 2, width)
    with torch.cuda.device_of(total):
        backward_kernel[(programs,)](
            total, weight.contiguous(), grad_out.contiguous(),
            None if grad_total is None else grad_total.contiguous(), grad_residual, grad_update, partial,
            rows, width, epsilon, RMS=rms, BIAS=bias is not None, **_shape(width),
        )  # fmt: skip
    sum_partials(partial, grad_weight, grad_bias)
    return grad_residual, grad_update, grad_weight, grad_bias
