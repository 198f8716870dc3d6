"""What the ops' Triton kernels share: Triton where it is installed, arithmetic, the sum of partial sums."""

# Parameters in capitals of several letters are compile-time constants, the only parameters with annotations,
# because Triton reads these.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import functools
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

LOG2_E: Any = None if triton is None else tl.constexpr(1.4426950408889634)


def available() -> tuple[bool, str]:
    """Whether Triton kernels can run here, and why or why not."""
    if triton is None:
        return False, "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True, "triton's interpreter"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    return True, f"triton {triton.__version__}"


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """The function as a Triton kernel; as it is where Triton is missing, so that it can be imported."""
    return function if triton is None else triton.jit(function, **options)


def jit_for_any(*names: str) -> Callable[[Callable[..., Any]], Any]:
    """As `jit`, with the same machine code for all values of these numbers: it gains nothing from them."""
    return functools.partial(jit, do_not_specialize=names)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; 1 of any other, which has the interpreter alone."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def rows(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous last dimension, copied only if necessary."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def as_bytes(document_start: Tensor | None) -> Tensor | None:
    """Marks (B, L) as contiguous bytes, copied only if necessary."""
    return None if document_start is None else document_start.bool().contiguous().view(torch.uint8)


@jit
def sigmoid(x):
    """1 / (1 + exp(-x)), by the reciprocal square root, which is one instruction where a division is six."""
    root = tl.rsqrt(1 + tl.exp2(x * -LOG2_E))
    return root * root


@jit_for_any("slots")
def sum_kernel(
    partial,  # (slots, rows, D) fp32
    main,  # (D, COLUMNS): the sums of the first COLUMNS rows
    last,  # (D): the sum of the row after them, if there is one
    slots, channels,
    COLUMNS: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, rows = tl.program_id(1), tl.num_programs(1)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel_mask = channel < channels
    sums = tl.zeros((SLOTS, BLOCK), tl.float32)
    for first in range(0, slots, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        place = partial + (slot.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
        sums += tl.load(place, mask=(slot < slots)[:, None] & channel_mask[None, :], other=0)
    total = tl.sum(sums, axis=0)
    if row < COLUMNS:
        tl.store(main + channel * COLUMNS + row, total.to(main.dtype.element_ty), mask=channel_mask)
    elif last is not None:
        tl.store(last + channel, total.to(last.dtype.element_ty), mask=channel_mask)


def sum_partials(partial: Tensor, main: Tensor, last: Tensor | None) -> None:
    """Add partial sums (slots, rows, D) over the slots, always in the same order: the first rows into the
    columns of main (D, ...), the one after them, if there is one, into last (D)."""
    slots, count, channels = partial.shape
    block = 32
    with torch.cuda.device_of(partial):
        sum_kernel[(triton.cdiv(channels, block), count)](
            partial, main, last, slots, channels,
            COLUMNS=main.numel() // channels, SLOTS=32, BLOCK=block, num_warps=4,
        )  # fmt: skip
