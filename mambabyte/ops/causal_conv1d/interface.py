"""Depthwise causal convolution followed by SiLU: what Mamba's block does before the scan."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from mambabyte.ops.backends import choose_backend
from mambabyte.ops.cpu.arguments import as_rows, empty, kernel_dtype, num_threads, pointer
from mambabyte.ops.cpu.build import library
from mambabyte.ops.operators import operator


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    document_start: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """silu(bias + sum_j weight[:, W-1-j] x[:, t-j]), j = 0 .. W-1, per channel (arXiv 2312.00752, figure 3).

    Args:
        x: (B, L, D). weight: (D, W), the last column multiplies the present. bias: (D) or None.
        initial_state: (B, W-1, D), the inputs before the first step, oldest first; zero when None.
        document_start: (B, L) boolean; nothing before a marked step is seen from it on.
        backend: "reference" or "cpu"; by default the fastest one that serves the tensors.

    Returns:
        out (B, L, D) in x's dtype, and with `return_final_state` the last W-1 inputs (B, W-1, D), with
        gradients. Inputs before the last document's start are zero in it.

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot serve these tensors.
    """
    bias = x.new_zeros(x.shape[-1]) if bias is None else bias
    if (
        x.dim() != 3
        or 0 in x.shape
        or weight.dim() != 2
        or weight.shape[0] != x.shape[2]
        or bias.shape != x.shape[2:]
    ):
        raise ValueError(
            "x (B, L, D), weight (D, W) and bias (D) do not fit: "
            f"{tuple(x.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)}"
        )
    history = weight.shape[1] - 1
    state_shape = (x.shape[0], history, x.shape[2])
    if initial_state is not None and tuple(initial_state.shape) != state_shape:
        raise ValueError(f"initial_state must have shape {state_shape}, not {tuple(initial_state.shape)}")
    # The fused kernel is compiled for the widths that Mamba models have.
    if choose_backend("causal_conv1d", x.device, x.dtype, backend) == "cpu" and weight.shape[1] in (2, 3, 4):
        out = _forward(x, weight, bias, initial_state, document_start)
    else:
        out = _reference(x, weight, bias, initial_state, document_start)
    if not return_final_state:
        return out
    return out, _last_inputs(x, initial_state, history, document_start)


def _with_history(x: Tensor, initial_state: Tensor | None, history: int) -> Tensor:
    before = (
        x.new_zeros(x.shape[0], history, x.shape[2]) if initial_state is None else initial_state.to(x.dtype)
    )
    return torch.cat([before, x], dim=1)


def _age(document_start: Tensor, history: int) -> Tensor:
    """(B, L): steps since the document began, at most `history`; what came before the window is its own."""
    age = torch.full_like(document_start, history, dtype=torch.int64)
    for back in range(history - 1, -1, -1):
        started = torch.zeros_like(document_start)
        started[:, back:] = document_start[:, : document_start.shape[1] - back]
        age = age.masked_fill(started, back)
    return age


def _last_inputs(
    x: Tensor, initial_state: Tensor | None, history: int, document_start: Tensor | None
) -> Tensor:
    inputs = _with_history(x[:, -history:] if history else x[:, :0], initial_state, history)
    last = inputs[:, inputs.shape[1] - history :]
    if document_start is None or history == 0:
        return last
    steps_back = torch.arange(history - 1, -1, -1, device=x.device)  # of each kept row, from the last step
    return last.masked_fill((steps_back > _age(document_start, history)[:, -1:]).unsqueeze(-1), 0.0)


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None, document_start: Tensor | None
) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    history, length = weight.shape[1] - 1, x.shape[1]
    padded = _with_history(x.to(dtype), None if initial_state is None else initial_state.to(dtype), history)
    age = None if document_start is None else _age(document_start, history)
    total = bias.to(dtype)
    for back in range(history + 1):
        tap = padded[:, history - back : history - back + length] * weight[:, history - back].to(dtype)
        total = total + (tap if age is None else tap.masked_fill((age < back).unsqueeze(-1), 0.0))
    return silu(total).to(x.dtype)


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "width")),
        *((name, ctypes.c_int32) for name in ("threads", "bfloat16")),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("x_batch_stride", "x_time_stride")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "state", "document_start", "out")),
        *(
            (name, ctypes.c_void_p)
            for name in ("grad_out", "grad_x", "grad_weight", "grad_bias", "grad_state")
        ),
    ]


@operator("mambabyte::causal_conv1d")
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None, document_start: Tensor | None
) -> Tensor:
    rows = as_rows(x, kernel_dtype(x.dtype))
    out = empty(x.shape, rows.dtype)
    _run("forward", rows, weight, bias, initial_state, document_start, out=out)
    return out.to(x.dtype)


@_forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None, document_start: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape)


@operator("mambabyte::causal_conv1d_backward")
def _backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_state: Tensor | None,
    document_start: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = as_rows(x, kernel_dtype(x.dtype))
    batch, _, channels = x.shape
    width = weight.shape[1]
    grad_x = empty(x.shape, rows.dtype)
    grad_weight = torch.empty(batch, width, channels)
    grad_bias = torch.empty(batch, channels)
    grad_state = torch.empty(batch, width - 1, channels)
    _run(
        "backward",
        rows,
        weight,
        bias,
        initial_state,
        document_start,
        grad_out=grad_out.to(rows.dtype).contiguous(),
        grad_x=grad_x,
        grad_weight=grad_weight,
        grad_bias=grad_bias,
        grad_state=grad_state,
    )
    grad_weight = grad_weight.sum(0).flip(0).t().contiguous()
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.sum(0).to(bias.dtype), grad_state


@_backward.register_fake
def _(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None,
    document_start: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    state = x.new_empty((x.shape[0], weight.shape[1] - 1, x.shape[2]), dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape), state


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, initial_state, document_start = ctx.saved_tensors
    grad_x, grad_weight, grad_bias, grad_state = _backward(
        grad_out, x, weight, bias, initial_state, document_start
    )
    grad_initial = None if initial_state is None else grad_state.to(initial_state.dtype)
    return grad_x, grad_weight, grad_bias, grad_initial, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _run(
    direction: str, x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None,
    document_start: Tensor | None, **tensors: Tensor,
) -> None:  # fmt: skip
    batch, length, channels = x.shape
    width = weight.shape[1]
    taps = weight.float().t().flip(0).contiguous()  # (W, D), taps[j] multiplies x[t - j]
    bias = bias.float().contiguous()
    state = (
        torch.zeros(batch, width - 1, channels)
        if initial_state is None
        else initial_state.float().contiguous()
    )
    start = None if document_start is None else document_start.to(torch.uint8).contiguous()
    arguments = _Arguments(
        batch=batch, length=length, channels=channels, width=width,
        threads=num_threads(), bfloat16=x.dtype == torch.bfloat16,
        x=pointer(x), x_batch_stride=x.stride(0), x_time_stride=x.stride(1),
        weight=pointer(taps), bias=pointer(bias), state=pointer(state), document_start=pointer(start),
        **{name: pointer(tensor) for name, tensor in tensors.items()},
    )  # fmt: skip
    getattr(library(), f"mambabyte_causal_conv1d_{direction}")(ctypes.byref(arguments))
