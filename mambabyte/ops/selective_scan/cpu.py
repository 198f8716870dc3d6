"""The fused CPU scan: calls `mambabyte/ops/cpu/selective_scan.cpp`."""

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
from mambabyte.ops.selective_scan.reference import ScanInputs


class Arguments(ctypes.Structure):
    """SelectiveScanArguments of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_int64, "batch length channels states groups"),
        *fields(ctypes.c_int32, "threads bfloat16 softplus"),
        *fields(Rows, "u delta z B C"),
        *fields(ctypes.c_void_p, "A D delta_bias document_start"),
        ("out", Rows),
        ("states_data", ctypes.c_void_p),
        ("keep_states", ctypes.c_int32),
        *fields(Rows, "grad_out grad_u grad_delta grad_z"),
        *fields(ctypes.c_void_p, "grad_state grad_A grad_D grad_delta_bias grad_B grad_C"),
    ]


@functools.cache
def _chunk() -> int:
    """Steps in a chunk."""
    return kernel("selective_scan_chunk")()


@functools.cache
def _lanes() -> int:
    """Channels in a block, which depend on the instruction set."""
    return kernel("selective_scan_lanes")()


def _to_blocks(states: Tensor) -> Tensor:
    """(B, D, N) states in the kernel's layout (B, ceil(D / lanes), N, lanes)."""
    batch, channels, width = states.shape
    padded = torch.nn.functional.pad(states.float(), (0, 0, 0, -channels % _lanes()))
    return padded.view(batch, -1, _lanes(), width).transpose(2, 3)


def _from_blocks(blocks: Tensor, channels: int) -> Tensor:
    """The inverse of `_to_blocks`."""
    batch, _, width, _ = blocks.shape
    return blocks.transpose(2, 3).reshape(batch, -1, width)[:, :channels]


STRIDED_GRAD_Z = True


def states_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """(B, chunks + 1, blocks, N, lanes): the state at each chunk's start and after the last step."""
    (batch, length, channels), lanes = u.shape, _lanes()
    return (batch, -(-length // _chunk()) + 1, -(-channels // lanes), A.shape[1], lanes)


def forward(inputs: ScanInputs, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state and the states between chunks: see `mambabyte.ops.selective_scan.custom_op`."""
    u = inputs.u
    batch, kept, *block = states_shape(u, inputs.A)
    states = empty((batch, kept if keep_states else 2, *block))
    states[:, 0] = 0 if inputs.initial_state is None else _to_blocks(inputs.initial_state)
    out = empty(u.shape, kernel_dtype(u.dtype))
    _run("forward", inputs, states, keep_states=keep_states, out=out)
    last = states[:, kept - 1 if keep_states else (kept - 1) % 2]
    final = _from_blocks(last, u.shape[2]).clone()  # an operator's outputs must not share memory
    return out.to(u.dtype), final, states if keep_states else states.new_empty(0)


def backward(
    grad_out: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, states: Tensor,
    grad_z: Tensor | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, delta_bias and the initial state."""
    u, delta, A, B, C, D, z, delta_bias, *_ = inputs
    batch, length, channels = u.shape
    dtype = kernel_dtype(u.dtype)
    grad_u, grad_delta = empty(u.shape, dtype), empty(u.shape, dtype)
    wanted, grad_z = grad_z, None if z is None else empty(u.shape, dtype)
    if wanted is not None and wanted.dtype == dtype:
        grad_z = wanted
    # The kernel overwrites this with the initial state's gradient, so it must not be autograd's own tensor.
    grad_state = torch.zeros(batch, *states.shape[2:])
    if grad_final_state is not None:
        grad_state.copy_(_to_blocks(grad_final_state))
    grad_A = torch.zeros_like(grad_state)
    grad_D = None if D is None else torch.zeros(batch, channels)
    grad_bias = None if delta_bias is None else torch.zeros(batch, channels)
    grad_B, grad_C = torch.empty(2, batch, _groups(states), length, A.shape[1])
    _run(
        "backward", inputs, states, keep_states=True, grad_out=as_rows(grad_out, dtype), grad_u=grad_u,
        grad_delta=grad_delta, grad_z=grad_z, grad_state=grad_state, grad_A=grad_A, grad_D=grad_D,
        grad_delta_bias=grad_bias, grad_B=grad_B, grad_C=grad_C,
    )  # fmt: skip
    if wanted is not None and wanted is not grad_z:
        wanted.copy_(grad_z)  # type: ignore[arg-type]
    return (
        grad_u.to(u.dtype),
        grad_delta.to(delta.dtype),
        _from_blocks(grad_A, channels).sum(0).to(A.dtype),
        grad_B.sum(1).to(B.dtype),
        grad_C.sum(1).to(C.dtype),
        None if D is None or grad_D is None else grad_D.sum(0).to(D.dtype),
        None if z is None or grad_z is None else grad_z.to(z.dtype),
        None if delta_bias is None or grad_bias is None else grad_bias.sum(0).to(delta_bias.dtype),
        _from_blocks(grad_state, channels),
    )


def _groups(states: Tensor) -> int:
    """How many groups of channel blocks each batch element is split into: enough to keep every thread equally
    busy with one task per (batch element, group)."""
    batch, threads = states.shape[0], num_threads()
    return min(threads // math.gcd(batch, threads), states.shape[2])


def _run(
    direction: str, inputs: ScanInputs, states: Tensor, keep_states: bool, **more: Tensor | None
) -> None:
    (batch, length, channels), dtype = inputs.u.shape, kernel_dtype(inputs.u.dtype)
    activations = {name: getattr(inputs, name) for name in ("u", "delta", "z", "B", "C")}
    parameters = {name: contiguous(getattr(inputs, name)) for name in ("A", "D", "delta_bias")}
    call(
        "selective_scan", direction, Arguments,
        batch=batch, length=length, channels=channels, states=states.shape[3], groups=_groups(states),
        threads=num_threads(), bfloat16=dtype == torch.bfloat16, softplus=inputs.delta_softplus,
        states_data=states, keep_states=keep_states,
        document_start=contiguous(inputs.document_start, torch.uint8),
        **{name: x if x is None else as_rows(x, dtype) for name, x in activations.items()},
        **parameters, **more,
    )  # fmt: skip
