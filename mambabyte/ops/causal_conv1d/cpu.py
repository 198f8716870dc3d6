"""The fused CPU convolution: calls `mambabyte/ops/cpu/causal_conv1d.cpp`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from mambabyte.ops.causal_conv1d.custom_op import ConvInputs, cannot_serve  # noqa: F401, for `ops.backends`
from mambabyte.ops.causal_conv1d.reference import last_inputs, same_document
from mambabyte.ops.cpu.arguments import (
    Rows,
    as_rows,
    call,
    contiguous,
    empty,
    fields,
    kernel_dtype,
    num_threads,
)


class Arguments(ctypes.Structure):
    """CausalConv1dArguments of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_int64, "batch length channels width"),
        *fields(ctypes.c_int32, "threads bfloat16"),
        ("x", Rows),
        *fields(ctypes.c_void_p, "weight bias state document_start out"),
        *fields(ctypes.c_void_p, "grad_out grad_x grad_weight grad_bias grad_state"),
        ("grad_x_stride", ctypes.c_int64),
    ]


def forward(inputs: ConvInputs, return_final_state: bool) -> tuple[Tensor, Tensor | None]:
    """Output and final state: see `mambabyte.ops.causal_conv1d.custom_op`."""
    x, weight, _, initial_state, document_start = inputs
    out = empty(x.shape, kernel_dtype(x.dtype))
    _run("forward", inputs, out=out)
    if not return_final_state:
        return out.to(x.dtype), None
    final = last_inputs(x, initial_state, weight.shape[1] - 1, document_start)
    return out.to(x.dtype), final.contiguous()


def backward(
    grad_out: Tensor, grad_final_state: Tensor | None, inputs: ConvInputs, wanted: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and the initial state."""
    x, weight, bias, initial_state, document_start = inputs
    (batch, length, channels), width = x.shape, weight.shape[1]
    in_place = wanted is not None and wanted.dtype == kernel_dtype(x.dtype)
    grad_x = wanted if in_place else empty(x.shape, kernel_dtype(x.dtype))
    assert grad_x is not None
    grad_weight, grad_bias = torch.empty(batch, width, channels), torch.empty(batch, channels)
    grad_state = torch.empty(batch, width - 1, channels)
    _run(
        "backward", inputs,
        grad_out=contiguous(grad_out, grad_x.dtype), grad_x=grad_x, grad_weight=grad_weight,
        grad_bias=grad_bias, grad_state=grad_state, grad_x_stride=grad_x.stride(1),
    )  # fmt: skip
    if grad_final_state is not None:
        grad_last = same_document(grad_final_state, document_start)
        kept = min(length, width - 1)  # inputs of x in the final state, after those of the initial one
        grad_x[:, length - kept :] += grad_last[:, width - 1 - kept :]
        grad_state[:, kept:] += grad_last[:, : width - 1 - kept]
    if wanted is not None and not in_place:
        wanted.copy_(grad_x)
    grad_weight = grad_weight.sum(0).flip(0).t().contiguous()
    return (
        grad_x.to(x.dtype),
        grad_weight.to(weight.dtype),
        grad_bias.sum(0).to(bias.dtype),
        None if initial_state is None else grad_state,
    )


def _run(direction: str, inputs: ConvInputs, **tensors: Any) -> None:
    x, weight, bias, initial_state, document_start = inputs
    (batch, length, channels), width = x.shape, weight.shape[1]
    if initial_state is None:
        initial_state = torch.zeros(batch, width - 1, channels)
    call(
        "causal_conv1d", direction, Arguments,
        batch=batch, length=length, channels=channels, width=width,
        threads=num_threads(), bfloat16=x.dtype == torch.bfloat16,
        x=as_rows(x, kernel_dtype(x.dtype)),
        weight=weight.float().t().flip(0).contiguous(),  # (W, D), weight[j] multiplies x[t - j]
        bias=contiguous(bias), state=contiguous(initial_state),
        document_start=contiguous(document_start, torch.uint8), **tensors,
    )  # fmt: skip
