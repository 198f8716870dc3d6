"""The selective scan on CUDA: launches the kernels of `triton_kernels.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from mambabyte.ops.cpu.arguments import contiguous
from mambabyte.ops.selective_scan.reference import ScanInputs
from mambabyte.ops.selective_scan.triton_kernels import backward_kernel, combine_kernel, scan_kernel, triton
from mambabyte.ops.triton.kernels import available, rows

__all__ = ["available", "backward", "forward", "states_shape"]

SPAN = 256  # steps; a multiple of both chunks
FORWARD_CHUNK, FORWARD_BLOCK = 16, 32  # steps, channels
BACKWARD_CHUNK, BACKWARD_BLOCK = 8, 64
# With fewer warps than this, about four per multiprocessor of an H100, forward splits time into spans as
# well and scans each of them twice.
ENOUGH_PROGRAMS = 512
PADDING = 16  # B and C are padded to a multiple of both chunks, so they can be read without masks


class _Launcher:
    """A scan's inputs in the kernels' layouts, states and A (..., N, D), B and C (B, N, L), all fp32, and the
    launches of the kernels on them."""

    def __init__(self, inputs: ScanInputs) -> None:
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, _, document_start = inputs
        self.batch, self.length, self.channels = u.shape
        self.state_size = A.shape[1]
        self.u, self.delta = rows(u), rows(delta)
        self.z = None if z is None else rows(z)
        self.A = _swapped(A)
        self.B, self.C = (_swapped(pad(t, (0, 0, 0, -self.length % PADDING))) for t in (B, C))
        start = contiguous(document_start, torch.uint8)
        self.tensors = (self.A, self.B, self.C, contiguous(D), contiguous(delta_bias), start)
        self.delta_softplus = delta_softplus

    def strides(self, *more: Tensor) -> list[int]:
        """Batch and time strides of u, delta, z and `more`; u's stand for those of an absent z."""
        gate = self.u if self.z is None else self.z
        return [stride for x in (self.u, self.delta, gate, *more) for stride in (x.stride(0), x.stride(1))]

    def states(self, count: int) -> Tensor:
        return self.A.new_empty(self.batch, count, self.state_size, self.channels)

    def boundary(self, state: Tensor | None) -> Tensor:
        """A (B, D, N) state, or zero for None, as (B, N, D)."""
        return self.states(1)[:, 0].zero_() if state is None else _swapped(state)

    def scan(
        self, carry: Tensor, out: Tensor | None, states: Tensor | None, span_steps: Tensor | None, span: int,
        keep_every: int, chunk: int, block: int,
    ) -> None:  # fmt: skip
        """Launch the scan over spans of `span` steps; it keeps the state before every `keep_every` steps."""
        kept = 0 if states is None else states.shape[1]
        with torch.cuda.device_of(self.u):
            scan_kernel[(triton.cdiv(self.channels, block), carry.shape[1], self.batch)](
                self.u, self.delta, self.z, *self.tensors, out, states, carry, span_steps,
                *self.strides(), self.length, self.B.shape[2], self.channels, self.state_size,
                triton.cdiv(span, chunk), kept,
                SOFTPLUS=self.delta_softplus, KEEP_EVERY=keep_every // chunk if kept else 0,
                CHUNK=chunk, BLOCK=block, num_warps=1,
            )  # fmt: skip

    def combine(self, carry: Tensor, boundary: Tensor, span_steps: Tensor, reverse: bool) -> None:
        block, spans = 128, carry.shape[1]
        with torch.cuda.device_of(self.u):
            combine_kernel[(triton.cdiv(self.channels, block), self.state_size, self.batch)](
                carry, boundary, span_steps, self.A, spans, self.channels, self.state_size,
                REVERSE=reverse, BLOCK=block,
            )  # fmt: skip


def _swapped(tensor: Tensor) -> Tensor:
    """A contiguous fp32 copy with the last two dimensions swapped, never the tensor itself."""
    return tensor.float().transpose(-1, -2).clone(memory_format=torch.contiguous_format)


def states_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Shape of the states that `forward` keeps."""
    return u.shape[0], -(-u.shape[1] // SPAN), A.shape[1], A.shape[0]


def forward(inputs: ScanInputs, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, L, D) in u's dtype, the final state (B, D, N) fp32, and for backward the state at the start of
    each span, of shape `states_shape`, or an empty tensor.
    """
    x, u = _Launcher(inputs), inputs.u
    out = u.new_empty(u.shape)
    state = x.boundary(inputs.initial_state)
    spans = triton.cdiv(x.length, SPAN)
    chunk, block = FORWARD_CHUNK, FORWARD_BLOCK
    if spans == 1 or x.batch * triton.cdiv(x.channels, block) >= ENOUGH_PROGRAMS:
        states = x.states(spans) if keep_states else None
        x.scan(state.unsqueeze(1), out, states, None, spans * SPAN, SPAN, chunk, block)
    else:
        carry, span_steps = x.states(spans).zero_(), x.A.new_empty(x.batch, spans, x.channels)
        x.scan(carry, None, None, span_steps, SPAN, SPAN, chunk, block)
        x.combine(carry, state, span_steps, reverse=False)
        states = x.states(spans) if keep_states else None
        x.scan(carry, out, states, None, SPAN, SPAN, chunk, block)
    return out, _swapped(state), state.new_empty(0) if states is None else states


def backward(
    grad_out: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, states: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and the initial state (B, D, N), each in its
    argument's dtype, the last in fp32; `states` are those that `forward` kept.
    """
    x = _Launcher(inputs)
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, *_ = inputs
    grad_out = rows(grad_out)
    chunk, block, spans = BACKWARD_CHUNK, BACKWARD_BLOCK, states.shape[1]
    blocks = triton.cdiv(x.channels, block)
    span_steps = x.A.new_empty(x.batch, spans, x.channels)
    chunk_states = x.states(triton.cdiv(x.length, chunk))
    x.scan(states.clone(), None, chunk_states, span_steps, SPAN, chunk, chunk, block)
    boundary = x.boundary(grad_final_state)
    grad_u, grad_delta, grad_z = (None if t is None else t.new_empty(u.shape) for t in (u, delta, z))
    grad_A = x.states(spans).zero_()
    grad_B, grad_C = (x.A.new_empty(x.batch, blocks, x.state_size, x.length) for _ in "BC")
    grad_D = None if D is None else torch.empty_like(span_steps)
    grad_bias = None if delta_bias is None else torch.empty_like(span_steps)

    def scan_back(carry: Tensor, carry_only: bool) -> None:
        with torch.cuda.device_of(u):
            backward_kernel[(blocks, spans, x.batch)](
                x.u, x.delta, x.z, grad_out, *x.tensors, chunk_states, carry, grad_u, grad_delta, grad_z,
                grad_A, grad_B, grad_C, grad_D, grad_bias, *x.strides(grad_out),
                x.length, x.B.shape[2], x.channels, x.state_size, SPAN // chunk,
                CARRY_ONLY=carry_only, SOFTPLUS=delta_softplus, CHUNK=chunk, BLOCK=block, num_warps=1,
            )  # fmt: skip

    carry = x.states(spans).zero_()
    if spans > 1:
        scan_back(carry, carry_only=True)
        x.combine(carry, boundary, span_steps, reverse=True)
    else:
        carry.copy_(boundary.unsqueeze(1))
    scan_back(carry, carry_only=False)
    return (
        grad_u,
        grad_delta,
        grad_A.sum((0, 1)).T.to(A.dtype).contiguous(),
        grad_B.sum(1).transpose(1, 2).to(B.dtype).contiguous(),
        grad_C.sum(1).transpose(1, 2).to(C.dtype).contiguous(),
        None if D is None or grad_D is None else grad_D.sum((0, 1)).to(D.dtype),
        grad_z,
        None if delta_bias is None or grad_bias is None else grad_bias.sum((0, 1)).to(delta_bias.dtype),
        _swapped(carry[:, 0]),
    )
