"""The selective scan on CUDA: launches the kernels of `triton_kernels.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from mambabyte.ops.cpu.arguments import contiguous
from mambabyte.ops.selective_scan.reference import ScanInputs
from mambabyte.ops.selective_scan.triton_kernels import backward_kernel, combine_kernel, scan_kernel, triton
from mambabyte.ops.triton.kernels import as_bytes, available, multiprocessors, rows

__all__ = ["available", "backward", "forward", "states_shape"]

SPAN = 256  # steps; a multiple of CHUNK
CHUNK, BLOCK = 8, 64  # steps and channels of a tile
# With fewer warps than this for each multiprocessor, forward splits time into spans as well and scans each of
# them twice. A multiprocessor has four schedulers, and one warp leaves a scheduler idle most of the time.
ENOUGH_WARPS = 8
# The warps for each multiprocessor that backward has in a group of spans: two rounds of its main kernel.
GROUP_WARPS = 16
PADDING = 16  # B and C are padded to a multiple of it, so that they can be read without masks


class _Launcher:
    """A scan's inputs in the kernels' layouts, states and A (..., N, D), B and C (B, N, L), all fp32, and the
    launches of the kernels on them."""

    def __init__(self, inputs: ScanInputs) -> None:
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, _, document_start = inputs
        self.batch, self.length, self.channels = u.shape
        self.state_size, self.blocks = A.shape[1], triton.cdiv(self.channels, BLOCK)
        self.u, self.delta = rows(u), rows(delta)
        self.z = None if z is None else rows(z)
        self.A = _swapped(A)
        missing = -self.length % PADDING
        self.B, self.C = (_swapped(pad(t, (0, 0, 0, missing)) if missing else t) for t in (B, C))
        start = as_bytes(document_start)
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
        self, carry: Tensor, span: int, keep_every: int, first_span: int = 0, out: Tensor | None = None,
        states: Tensor | None = None, span_steps: Tensor | None = None, grad_out: Tensor | None = None,
        adjoint: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Launch the scan over spans of `span` steps; it keeps the state before every `keep_every` steps."""
        kept = 0 if states is None else states.shape[1]
        with torch.cuda.device_of(self.u):
            scan_kernel[(self.blocks, carry.shape[1], self.batch)](
                self.u, self.delta, self.z, *self.tensors, out, states, carry, span_steps, grad_out, adjoint,
                *self.strides(self.u if grad_out is None else grad_out),
                self.length, self.B.shape[2], self.channels, self.state_size,
                first_span, triton.cdiv(span, CHUNK), kept,
                SOFTPLUS=self.delta_softplus, KEEP_EVERY=keep_every // CHUNK if kept else 0,
                CHUNK=CHUNK, BLOCK=BLOCK, num_warps=1,
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
    states = x.states(spans) if keep_states else None
    if spans == 1 or x.batch * x.blocks >= ENOUGH_WARPS * multiprocessors(u.device):
        x.scan(state.unsqueeze(1), spans * SPAN, SPAN, out=out, states=states)
    else:
        carry, span_steps = x.states(spans).zero_(), x.A.new_empty(x.batch, spans, x.channels)
        x.scan(carry, SPAN, SPAN, span_steps=span_steps)
        x.combine(carry, state, span_steps, reverse=False)
        x.scan(carry, SPAN, SPAN, out=out, states=states)
    return out, _swapped(state), state.new_empty(0) if states is None else states


def backward(
    grad_out: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, states: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and the initial state (B, D, N), each in its
    argument's dtype, the last in fp32; `states` are those that `forward` kept.
    """
    x = _Launcher(inputs)
    u, delta, A, B, C, D, z, delta_bias, *_ = inputs
    grad_out = rows(grad_out)
    spans = states.shape[1]
    group = min(spans, triton.cdiv(GROUP_WARPS * multiprocessors(u.device), x.batch * x.blocks))
    grad_u, grad_delta, grad_z = (None if t is None else t.new_empty(u.shape) for t in (u, delta, z))
    grad_A = x.states(group).zero_()  # to which every group adds
    grad_B, grad_C = (t.new_empty(t.shape) for t in (B, C))
    grad_D, grad_bias = (
        None if t is None else x.A.new_empty(x.batch, spans, x.channels) for t in (D, delta_bias)
    )
    boundary = x.boundary(grad_final_state)
    for last in range(spans, 0, -group):
        first = max(last - group, 0)
        count = last - first
        chunk_states = x.states(count * SPAN // CHUNK)
        carry, span_steps = x.states(count).zero_(), x.A.new_empty(x.batch, count, x.channels)
        state = states[:, first:last].clone(memory_format=torch.contiguous_format)
        if count > 1:
            x.scan(
                state, SPAN, CHUNK, first, states=chunk_states, span_steps=span_steps, grad_out=grad_out,
                adjoint=carry,
            )  # fmt: skip
            x.combine(carry, boundary, span_steps, reverse=True)
        else:
            x.scan(state, SPAN, CHUNK, first, states=chunk_states)
            carry = boundary.unsqueeze(1)
        partial = x.A.new_empty(2, x.batch, x.blocks, x.state_size, count * SPAN)
        with torch.cuda.device_of(u):
            backward_kernel[(x.blocks, count, x.batch)](
                x.u, x.delta, x.z, grad_out, *x.tensors, chunk_states, carry, grad_u, grad_delta, grad_z,
                grad_A, *partial, grad_D, grad_bias, *x.strides(grad_out),
                x.length, x.B.shape[2], x.channels, x.state_size, first, SPAN // CHUNK, spans,
                SOFTPLUS=x.delta_softplus, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=1,
            )  # fmt: skip
        steps = slice(first * SPAN, min(last * SPAN, x.length))
        for grad, parts in zip((grad_B, grad_C), partial, strict=True):
            grad[:, steps] = parts[..., : steps.stop - steps.start].sum(1).transpose(1, 2)
        boundary = carry[:, 0].contiguous()
    return (
        grad_u,
        grad_delta,
        grad_A.sum((0, 1)).T.to(A.dtype).contiguous(),
        grad_B,
        grad_C,
        None if D is None or grad_D is None else grad_D.sum((0, 1)).to(D.dtype),
        grad_z,
        None if delta_bias is None or grad_bias is None else grad_bias.sum((0, 1)).to(delta_bias.dtype),
        _swapped(boundary),
    )
