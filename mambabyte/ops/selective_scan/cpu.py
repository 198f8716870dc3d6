"""The fused CPU scan: calls `mambabyte/ops/cpu/selective_scan.cpp`."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from mambabyte.ops.cpu.arguments import Rows, as_rows, empty, fields, kernel_dtype, num_threads, pointer, rows
from mambabyte.ops.cpu.build import kernel
from mambabyte.ops.selective_scan.inputs import ScanInputs

CHUNK, LANES = 32, 16  # kChunk and kLanes of the C++ source


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


def _to_blocks(states: Tensor) -> Tensor:
    """(B, D, N) states in the kernel's layout (B, ceil(D / LANES), N, LANES)."""
    batch, channels, width = states.shape
    padded = torch.nn.functional.pad(states.float(), (0, 0, 0, -channels % LANES))
    return padded.view(batch, -1, LANES, width).transpose(2, 3)


def _from_blocks(blocks: Tensor, channels: int) -> Tensor:
    """The inverse of `_to_blocks`."""
    batch, _, width, _ = blocks.shape
    return blocks.transpose(2, 3).reshape(batch, -1, width)[:, :channels]


def _as_the_kernel_reads(inputs: ScanInputs) -> ScanInputs:
    """Activations in the kernel's dtype with contiguous rows, contiguous fp32 parameters, marks as bytes."""
    u, delta, A, B, C, D, z, delta_bias, _, _, document_start = inputs
    dtype = kernel_dtype(u.dtype)
    return inputs._replace(
        u=as_rows(u, dtype),
        delta=as_rows(delta, dtype),
        A=A.float().contiguous(),
        B=as_rows(B, dtype),
        C=as_rows(C, dtype),
        D=None if D is None else D.float().contiguous(),
        z=None if z is None else as_rows(z, dtype),
        delta_bias=None if delta_bias is None else delta_bias.float().contiguous(),
        document_start=None if document_start is None else document_start.to(torch.uint8).contiguous(),
    )


def states_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """(B, chunks + 1, blocks, N, lanes): the state at each chunk's start and after the last step."""
    return (u.shape[0], -(-u.shape[1] // CHUNK) + 1, -(-u.shape[2] // LANES), A.shape[1], LANES)


def forward(inputs: ScanInputs, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state and the states between chunks: see `mambabyte.ops.selective_scan.custom_op`."""
    u, initial_state = inputs.u, inputs.initial_state
    batch, kept, *block = states_shape(u, inputs.A)
    states = empty((batch, kept if keep_states else 2, *block))
    if initial_state is None:
        states[:, 0].zero_()
    else:
        states[:, 0].copy_(_to_blocks(initial_state))
    read = _as_the_kernel_reads(inputs)
    out = empty(u.shape, read.u.dtype)
    arguments = _arguments(read, states, keep_states)
    arguments.out = rows(out)
    _run("forward", arguments)
    last = states[:, kept - 1 if keep_states else (kept - 1) % 2]
    final = _from_blocks(last, u.shape[2]).clone()  # an operator's outputs must not share memory
    return out.to(u.dtype), final, states if keep_states else states.new_empty(0)


def backward(
    grad_out: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, states: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and the initial state."""
    u, delta, A, B, C, D, z, delta_bias, *_ = inputs
    batch, length, channels = u.shape
    read = _as_the_kernel_reads(inputs)
    dtype = read.u.dtype
    grad_out = as_rows(grad_out, dtype)
    grad_u, grad_delta = empty(u.shape, dtype), empty(u.shape, dtype)
    grad_z = None if z is None else empty(u.shape, dtype)
    # The kernel overwrites this with the initial state's gradient, so it must not be autograd's own tensor.
    if grad_final_state is None:
        grad_state = states.new_zeros(batch, *states.shape[2:])
    else:
        grad_state = _to_blocks(grad_final_state).clone(memory_format=torch.contiguous_format)
    grad_A = torch.zeros(grad_state.shape)
    grad_D = None if D is None else torch.zeros(batch, channels)
    grad_bias = None if delta_bias is None else torch.zeros(batch, channels)
    arguments = _arguments(read, states, keep_states=True)
    grad_B = torch.empty(batch, arguments.groups, length, A.shape[1])
    grad_C = torch.empty_like(grad_B)
    arguments.grad_out, arguments.grad_u = rows(grad_out), rows(grad_u)
    arguments.grad_delta, arguments.grad_z = rows(grad_delta), rows(grad_z)
    arguments.grad_state, arguments.grad_A = pointer(grad_state), pointer(grad_A)
    arguments.grad_D, arguments.grad_delta_bias = pointer(grad_D), pointer(grad_bias)
    arguments.grad_B, arguments.grad_C = pointer(grad_B), pointer(grad_C)
    _run("backward", arguments)
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


def _arguments(read: ScanInputs, states: Tensor, keep_states: bool) -> Arguments:
    """What both directions need; the tensors must outlive the kernel's call."""
    batch, length, channels = read.u.shape
    threads = num_threads()
    return Arguments(
        batch=batch,
        length=length,
        channels=channels,
        states=states.shape[3],
        # One task per (batch, group of channel blocks): as many groups as keep every thread equally busy.
        groups=min(threads // math.gcd(batch, threads), states.shape[2]),
        threads=threads,
        bfloat16=read.u.dtype == torch.bfloat16,
        softplus=read.delta_softplus,
        keep_states=keep_states,
        states_data=pointer(states),
        **{name: rows(getattr(read, name)) for name in ("u", "delta", "z", "B", "C")},
        **{name: pointer(getattr(read, name)) for name in ("A", "D", "delta_bias", "document_start")},
    )


def _run(direction: str, arguments: Arguments) -> None:
    kernel(f"selective_scan_{direction}", selective_scan_arguments=Arguments)(ctypes.byref(arguments))
