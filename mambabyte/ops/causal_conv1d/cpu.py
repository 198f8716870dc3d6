"""The fused CPU convolution: calls `mambabyte/ops/cpu/causal_conv1d.cpp`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

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
from mambabyte.ops.operators import operator

WIDTHS = (2, 3, 4)  # those that Mamba models have, and that the kernel is compiled for


class Arguments(ctypes.Structure):
    """CausalConv1dArguments of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_int64, "batch length channels width"),
        *fields(ctypes.c_int32, "threads bfloat16"),
        ("x", Rows),
        *fields(ctypes.c_void_p, "weight bias state document_start out"),
        *fields(ctypes.c_void_p, "grad_out grad_x grad_weight grad_bias grad_state"),
    ]


@operator("mambabyte::causal_conv1d")
def causal_conv1d_fused(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None, document_start: Tensor | None
) -> Tensor:
    out = empty(x.shape, kernel_dtype(x.dtype))
    _run("forward", x, weight, bias, initial_state, document_start, out=out)
    return out.to(x.dtype)


@causal_conv1d_fused.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@operator("mambabyte::causal_conv1d_backward")
def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None,
    document_start: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (batch, _, channels), width = x.shape, weight.shape[1]
    grad_x = empty(x.shape, kernel_dtype(x.dtype))
    grad_weight, grad_bias = torch.empty(batch, width, channels), torch.empty(batch, channels)
    grad_state = torch.empty(batch, width - 1, channels)
    _run(
        "backward", x, weight, bias, initial_state, document_start,
        grad_out=contiguous(grad_out, grad_x.dtype), grad_x=grad_x, grad_weight=grad_weight,
        grad_bias=grad_bias, grad_state=grad_state,
    )  # fmt: skip
    grad_weight = grad_weight.sum(0).flip(0).t().contiguous()
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.sum(0).to(bias.dtype), grad_state


@_backward.register_fake
def _(grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> tuple[Tensor, ...]:
    state = x.new_empty((x.shape[0], weight.shape[1] - 1, x.shape[2]), dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape), state


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing lets each be unpacked once
    *gradients, grad_state = _backward(grad_out, *saved)
    initial_state = saved[3]
    return *gradients, None if initial_state is None else grad_state.to(initial_state.dtype), None


causal_conv1d_fused.register_autograd(_differentiate, setup_context=_save)


def _run(
    direction: str, x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None,
    document_start: Tensor | None, **tensors: Tensor,
) -> None:  # fmt: skip
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
