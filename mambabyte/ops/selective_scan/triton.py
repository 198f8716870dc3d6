"""The selective scan in Triton for CUDA, forward and backward (arXiv 2312.00752, section 3.3.2).

One warp per program, one channel per lane. A program walks a stretch of time in chunks: u, delta, z and the
gradients of a chunk are (chunk, block) tiles with time in each lane's registers, so the recurrence is a chain of
fused multiply-adds without shuffles; the N states are a loop around it, and each one's value between chunks lives
in a (B, spans, N, D) buffer that stays in cache. The (B, L, D, N) states are never written. For the tiles to be
laid out so, the compiler must not know that pointers are aligned: it would give a lane eight channels and spread
time over lanes.

Parallelism is over channels and batch and, where these are few and in all of backward, also over spans of SPAN
steps: each span is walked from zero, `_carry` joins the spans, and each is walked again from its true state.
Forward keeps the state at the start of each span, (B, L / SPAN, N, D) fp32; backward first walks them again to get
the states at the start of each chunk, a temporary of 1 / BACKWARD_CHUNK of a (B, L, D, N) fp32 tensor.

The gradients of B and C are summed over the channels of a block in the kernel and over blocks afterwards:
(B, D / BACKWARD_BLOCK, N, L) fp32 each, for both 2 / BACKWARD_BLOCK of a (B, L, D, N) fp32 tensor. Nothing is added
atomically, so that results are the same from run to run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

SPAN = 256  # steps; a multiple of both chunks
FORWARD_CHUNK, FORWARD_BLOCK = 16, 32  # steps, channels
BACKWARD_CHUNK, BACKWARD_BLOCK = 16, 32
# Forward walks spans twice when there are fewer warps than this, about four on each multiprocessor of an H100.
ENOUGH_PROGRAMS = 512

_ALIGNABLE = (
    "u delta z grad_out A B C D delta_bias document_start out states carry span_steps "
    "grad_u grad_delta grad_z grad_A grad_B grad_C grad_D grad_delta_bias "
    "u_batch u_time delta_batch delta_time z_batch z_time grad_out_batch grad_out_time length channels"
).split()


def _kernel(function: Callable[..., None]) -> Any:
    if triton is None:
        return function
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(
        function, do_not_specialize_on_alignment=[name for name in names if name in _ALIGNABLE]
    )


def _helper(function: Callable[..., Any]) -> Any:
    return function if triton is None else triton.jit(function)


def available() -> tuple[bool, str]:
    """Whether the kernels can run here, and why (not)."""
    if triton is None:
        return False, "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True, "triton's interpreter"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    return True, f"triton {triton.__version__}"


@_helper
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1 / (1 + tl.exp(-x))


@_helper
def _softplus(x):  # type: ignore[no-untyped-def]
    """max(x, 0) + log1p(exp(-|x|)), with log1p(e) = 2 atanh(e / (2 + e)) as a series: s <= 1/3."""
    exponential = tl.exp(-tl.abs(x))
    s = exponential / (2 + exponential)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.maximum(x, 0) + 2 * s * series


@_helper
def _row(tile, rows, i):  # type: ignore[no-untyped-def]
    """Row i of a tile, i known when compiling: it costs nothing (-0.0 is the neutral element of +)."""
    return tl.sum(tl.where(rows[:, None] == i, tile, -0.0), axis=0)


@_helper
def _scan(decay, update, state, rows, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """What is left of the state before each step, (CHUNK, BLOCK), and the state after the last step."""
    carried = decay
    for i in tl.static_range(CHUNK):
        left = _row(decay, rows, i) * state
        carried = tl.where(rows[:, None] == i, left[None, :], carried)
        state = left + _row(update, rows, i)
    return carried, state


@_helper
def _reverse_scan(decay, update, adjoint, rows, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of the state after each step, (CHUNK, BLOCK), and of the state before the first one."""
    gradient = update
    for j in tl.static_range(CHUNK):
        after = adjoint + _row(update, rows, CHUNK - 1 - j)
        gradient = tl.where(rows[:, None] == CHUNK - 1 - j, after[None, :], gradient)
        adjoint = _row(decay, rows, CHUNK - 1 - j) * after
    return gradient, adjoint


@_helper
def _load(data, batch, time, b, first, rows, channel, live):  # type: ignore[no-untyped-def]
    """Rows first + rows of batch b of a (B, L, D) tensor as fp32; zero where not live."""
    base = data + b * batch + first * time
    return tl.load(base + rows[:, None] * time + channel[None, :], mask=live, other=0).to(tl.float32)


@_helper
def _load_steps(
    delta, delta_batch, delta_time, delta_bias, b, first, rows, channel, live, SOFTPLUS: tl.constexpr
):  # type: ignore[no-untyped-def]
    """Step sizes before and after softplus; zero where not live, so that these steps change nothing."""
    raw = _load(delta, delta_batch, delta_time, b, first, rows, channel, live)
    if delta_bias is not None:
        raw += tl.load(delta_bias + channel, mask=live_channel(channel, live), other=0)[None, :]
    steps = _softplus(raw) if SOFTPLUS else raw
    return raw, tl.where(live, steps, 0.0)
