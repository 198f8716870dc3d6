"""The fused CPU scan: the calls into `mambabyte/ops/cpu/selective_scan.cpp`."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from mambabyte.ops.cpu.arguments import Rows, as_rows, empty, kernel_dtype, num_threads, pointer, rows
from mambabyte.ops.cpu.build import library

CHUNK, LANES = 32, 16  # kChunk and kLanes of the C++ source


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "states", "groups")),
        *((name, ctypes.c_int32) for name in ("threads", "bfloat16", "softplus")),
        *((name, Rows) for name in ("u", "delta", "z", "B", "C")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "delta_bias", "document_start")),
        ("out", Rows),
        ("states_data", ctypes.c_void_p),
        ("keep_states", ctypes.c_int32),
        *((name, Rows) for name in ("grad_out", "grad_u", "grad_delta", "grad_z")),
        *(
            (name, ctypes.c_void_p)
            for name in ("grad_state", "grad_A", "grad_D", "grad_delta_bias", "grad_B", "grad_C")
        ),
    ]


def _blocks(states: Tensor) -> Tensor:
    """(B, D, N) states as the kernel lays them out: (B, ceil(D / LANES), N, LANES)."""
    batch, channels, width = states.shape
    padded = torch.nn.functional.pad(states.float(), (0, 0, 0, -channels % LANES))
    return padded.view(batch, -1, LANES, width).transpose(2, 3)


def _channels(blocks: Tensor, channels: int) -> Tensor:
    """The inverse of `_blocks`."""
    batch, _, width, _ = blocks.shape
    return blocks.transpose(2, 3).reshape(batch, -1, width)[:, :channels]


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def states_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """(B, chunks + 1, blocks, N, lanes): the state at each chunk's start and after the last step."""
    return (u.shape[0], -(-u.shape[1] // CHUNK) + 1, -(-u.shape[2] // LANES), A.shape[1], LANES)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    document_start: Tensor | None,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state and the states between chunks: see `mambabyte.ops.selective_scan.fused`."""
    dtype = kernel_dtype(u.dtype)
    inputs = [None if x is None else as_rows(x, dtype) for x in (u, delta, z, B, C)]
    parameters = [_float(x) for x in (A, D, delta_bias)]
    start = None if document_start is None else document_start.to(torch.uint8).contiguous()
    batch, kept, *block = states_shape(u, A)
    states = empty((batch, kept if keep_states else 2, *block))
    if initial_state is None:
        states[:, 0].zero_()
    else:
        states[:, 0].copy_(_blocks(initial_state))
    out = empty(u.shape, dtype)
    arguments = _arguments(inputs, parameters, start, out, states, delta_softplus, keep_states)
    library().mambabyte_selective_scan_forward(ctypes.byref(arguments))
    last = states[:, kept - 1 if keep_states else (kept - 1) % 2]
    final = _channels(last, u.shape[2]).clone()  # an operator's outputs must not share memory
    return out.to(u.dtype), final, states if keep_states else states.new_empty(0)


def backward(
    grad_out: Tensor,
    grad_final_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    document_start: Tensor | None,
    states: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and the initial state."""
    dtype = kernel_dtype(u.dtype)
    inputs = [None if x is None else as_rows(x, dtype) for x in (u, delta, z, B, C)]
    parameters = [_float(x) for x in (A, D, delta_bias)]
    start = None if document_start is None else document_start.to(torch.uint8).contiguous()
    batch, length, channels = u.shape
    grad_out = as_rows(grad_out, dtype)
    grad_u = empty(u.shape, dtype)
    grad_delta = empty(u.shape, dtype)
    grad_z = None if z is None else empty(u.shape, dtype)
    # The kernel writes the initial state's gradient over this: it must not be autograd's own tensor.
    if grad_final_state is None:
        grad_state = states.new_zeros(batch, *states.shape[2:])
    else:
        grad_state = _blocks(grad_final_state).clone(memory_format=torch.contiguous_format)
    grad_A = torch.zeros(grad_state.shape)
    grad_D = None if D is None else torch.zeros(batch, channels)
    grad_bias = None if delta_bias is None else torch.zeros(batch, channels)
    arguments = _arguments(inputs, parameters, start, grad_u, states, delta_softplus, True)
    grad_B = torch.empty(batch, arguments.groups, length, A.shape[1])
    grad_C = torch.empty_like(grad_B)
    arguments.grad_out, arguments.grad_u = rows(grad_out), rows(grad_u)
    arguments.grad_delta, arguments.grad_z = rows(grad_delta), rows(grad_z)
    arguments.grad_state, arguments.grad_A = pointer(grad_state), pointer(grad_A)
    arguments.grad_D, arguments.grad_delta_bias = pointer(grad_D), pointer(grad_bias)
    arguments.grad_B, arguments.grad_C = pointer(grad_B), pointer(grad_C)
    library().mambabyte_selective_scan_backward(ctypes.byref(arguments))
    return (
        grad_u.to(u.dtype),
        grad_delta.to(delta.dtype),
        _channels(grad_A, channels).sum(0).to(A.dtype),
        grad_B.sum(1).to(B.dtype),
        grad_C.sum(1).to(C.dtype),
        None if D is None or grad_D is None else grad_D.sum(0).to(D.dtype),
        None if z is None or grad_z is None else grad_z.to(z.dtype),
        None if delta_bias is None or grad_bias is None else grad_bias.sum(0).to(delta_bias.dtype),
        _channels(grad_state, channels),
    )


def _arguments(
    inputs: list[Tensor | None],
    parameters: list[Tensor | None],
    document_start: Tensor | None,
    out: Tensor,
    states: Tensor,
    softplus: bool,
    keep_states: bool,
) -> _Arguments:
    u = inputs[0]
    assert u is not None
    batch, length, channels = u.shape
    threads = num_threads()
    arguments = _Arguments(batch=batch, length=length, channels=channels, states=states.shape[3])
    # One task per (batch, group of channel blocks): as many groups as keep every thread equally busy.
    arguments.groups = min(threads // math.gcd(batch, threads), states.shape[2])
    arguments.threads, arguments.bfloat16 = threads, u.dtype == torch.bfloat16
    arguments.softplus, arguments.keep_states = softplus, keep_states
    for name, tensor in zip(("u", "delta", "z", "B", "C"), inputs, strict=True):
        setattr(arguments, name, rows(tensor))
    for name, tensor in zip(("A", "D", "delta_bias"), parameters, strict=True):
        setattr(arguments, name, pointer(tensor))
    arguments.document_start = pointer(document_start)
    arguments.out, arguments.states_data = rows(out), states.data_ptr()
    return arguments
