"""The fused CPU kernel: calls `mambabyte/ops/cpu/ssd.cpp`."""

from __future__ import annotations

import ctypes
import functools
import math

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
from mambabyte.ops.cpu.build import kernel
from mambabyte.ops.ssd.reference import SSDInputs


class Arguments(ctypes.Structure):
    """SSDArguments of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_int64, "batch length heads channels groups states parts"),
        *fields(ctypes.c_int32, "threads bfloat16 keep_states"),
        *fields(Rows, "x B C"),
        *fields(ctypes.c_void_p, "log_decay document_start"),
        ("out", Rows),
        ("states_data", ctypes.c_void_p),
        *fields(Rows, "grad_out grad_x"),
        *fields(ctypes.c_void_p, "grad_state grad_log_decay grad_B grad_C"),
    ]


@functools.cache
def _size(of: str) -> int:
    """Steps of a chunk; rows of N (lanes of P), of which the kernel has multiples."""
    return kernel(f"ssd_{of}")()


def _to_kernel(out: Tensor, states: Tensor | None) -> None:
    """Write (B, H, P, N) states in the kernel's layout (B, H, rows of N, lanes of P), and zeros."""
    if states is None or states.mT.shape != out.shape:
        out.zero_()
    if states is not None:
        out[..., : states.shape[3], : states.shape[2]] = states.mT


def _from_kernel(states: Tensor, x: Tensor, B: Tensor) -> Tensor:
    """The inverse of `_to_kernel`, as a new tensor."""
    return states[..., : B.shape[3], : x.shape[3]].mT.clone(memory_format=torch.contiguous_format)


def states_shape(x: Tensor, B: Tensor) -> tuple[int, ...]:
    """(B, chunks + 1, H, rows of N, lanes of P): the state at each chunk's start and after the last step."""
    (batch, length, heads, channels), width = x.shape, B.shape[3]
    chunks, (rows, lanes) = -(-length // _size("chunk")), (_size("rows"), _size("lanes"))
    return (batch, chunks + 1, heads, -(-width // rows) * rows, -(-channels // lanes) * lanes)


def forward(inputs: SSDInputs, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state and the states between chunks: see `mambabyte.ops.ssd.custom_op`."""
    x, _, B, _, initial_state, _ = inputs
    batch, kept, *state = states_shape(x, B)
    states = empty((batch, kept if keep_states else 2, *state))
    _to_kernel(states[:, 0], initial_state)
    out = empty(x.shape, _dtype(inputs))
    _run("forward", inputs, keep_states=keep_states, states_data=states, out=out.flatten(2))
    last = states[:, kept - 1 if keep_states else (kept - 1) % 2]
    return out.to(x.dtype), _from_kernel(last, x, B), states if keep_states else states.new_empty(0)


def backward(
    grad_out: Tensor, grad_final_state: Tensor | None, inputs: SSDInputs, states: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, log_decay, B, C and the initial state."""
    x, log_decay, B, C, *_ = inputs
    dtype, (batch, length, heads) = _dtype(inputs), x.shape[:3]
    grad_x = empty(x.shape, dtype)
    # The kernel overwrites this with the initial state's gradient, so it must not be autograd's own tensor.
    grad_state = torch.empty(batch, *states.shape[2:])
    _to_kernel(grad_state, grad_final_state)
    grad_decay = None if log_decay is None else torch.empty(batch, heads, length)
    grad_B, grad_C = torch.empty(2, batch, _parts(inputs), *B.shape[1:])
    _run(
        "backward", inputs, keep_states=True, states_data=states,
        grad_out=as_rows(grad_out.flatten(2), dtype), grad_x=grad_x.flatten(2), grad_state=grad_state,
        grad_log_decay=grad_decay, grad_B=grad_B, grad_C=grad_C,
    )  # fmt: skip
    return (
        grad_x.to(x.dtype),
        None if log_decay is None or grad_decay is None else grad_decay.transpose(1, 2).to(log_decay.dtype),
        grad_B.sum(1).to(B.dtype),
        grad_C.sum(1).to(C.dtype),
        _from_kernel(grad_state, x, B),
    )


def _dtype(inputs: SSDInputs) -> torch.dtype:
    """That in which the kernel reads activations: bf16 where it loses nothing."""
    dtypes = {kernel_dtype(tensor.dtype) for tensor in (inputs.x, inputs.B, inputs.C)}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _parts(inputs: SSDInputs) -> int:
    """How many parts the heads of each group are split into: enough to keep every thread equally busy with
    one task per (batch element, group, part)."""
    (batch, _, heads, _), groups, threads = inputs.x.shape, inputs.B.shape[2], num_threads()
    return min(threads // math.gcd(batch * groups, threads), heads // groups)


def _run(direction: str, inputs: SSDInputs, **more: Tensor | bool | None) -> None:
    x, log_decay, B, C, _, document_start = inputs
    (batch, length, heads, channels), (groups, states), dtype = x.shape, B.shape[2:], _dtype(inputs)
    call(
        "ssd", direction, Arguments,
        batch=batch, length=length, heads=heads, channels=channels, groups=groups, states=states,
        parts=_parts(inputs), threads=num_threads(), bfloat16=dtype == torch.bfloat16,
        x=as_rows(x.flatten(2), dtype), B=as_rows(B.flatten(2), dtype), C=as_rows(C.flatten(2), dtype),
        log_decay=None if log_decay is None else contiguous(log_decay.transpose(1, 2)),
        document_start=contiguous(document_start, torch.uint8), **more,
    )  # fmt: skip
