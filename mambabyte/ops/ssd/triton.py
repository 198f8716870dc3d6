"""The state space dual form on CUDA: launches the kernels of `triton_kernels.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from mambabyte.ops.ssd.reference import SSDInputs
from mambabyte.ops.ssd.triton_kernels import (
    chunk_kernel,
    combine_kernel,
    cumulate_kernel,
    decay_kernel,
    product_kernel,
    triton,
)
from mambabyte.ops.triton.kernels import as_bytes, available, multiprocessors, rows

__all__ = ["available", "backward", "forward", "states_shape"]

CHUNK = 128  # steps; less for short sequences
# Steps of a product, and its kernel's warps and stages: as many as do not spill registers in its loops.
BF16, FP32 = (64, 8, 2), (32, 4, 1)
LEAST = 16  # of each side of a product: tl.dot's
BLOCK = 64  # channels or states of a product
STATES_BLOCK = 512  # elements of a state that a program takes from chunk to chunk
# Gradients of B and C are summed in a program over as many heads of a group as leave so many programs for
# each multiprocessor.
ENOUGH_PROGRAMS = 4


def _power(size: int, most: int) -> int:
    """`size` rounded up to a power of two that is at least LEAST, or `most` if that is less."""
    power = LEAST
    while power < min(size, most):
        power *= 2
    return power


def states_shape(x: Tensor, B: Tensor) -> tuple[int, ...]:
    """Shape of the states that `forward` keeps: before the first chunk, and after each."""
    batch, length, heads, channels = x.shape
    return batch, 1 + -(-length // _power(length, CHUNK)), heads, channels, B.shape[-1]


class _Launcher:
    """The inputs of SSD as the kernels read them, and the launches of the kernels."""

    def __init__(self, inputs: SSDInputs) -> None:
        x, log_decay, B, C, _, document_start = inputs
        self.batch, self.length, self.heads, self.channels = x.shape
        self.groups, self.state_size = B.shape[2:]
        self.x, self.B, self.C = rows(x), rows(B), rows(C)
        self.chunk = _power(self.length, CHUNK)
        self.chunks = triton.cdiv(self.length, self.chunk)
        self.shape = states_shape(x, B)
        narrow = all(tensor.dtype == torch.bfloat16 for tensor in (x, B, C))
        self.operand = triton.language.bfloat16 if narrow else triton.language.float32
        tile, self.warps, self.stages = BF16 if narrow else FP32
        self.tile = min(self.chunk, tile)
        self.start, self.documents, self.logs = as_bytes(document_start), None, None
        if self.start is not None:
            marks = pad(self.start, (0, self.chunks * self.chunk - self.length))
            self.documents = marks.unflatten(1, (self.chunks, -1)).cumsum(2, dtype=torch.int32)
        if log_decay is not None:
            self.logs = self.empty(self.batch, self.chunks, self.heads, self.chunk)
            block = 16
            with torch.cuda.device_of(x):
                cumulate_kernel[(self.batch * self.chunks, triton.cdiv(self.heads, block))](
                    log_decay, self.start, self.logs, *log_decay.stride(),
                    self.length, self.heads, self.chunks, CHUNK=self.chunk, BLOCK=block, num_warps=4,
                )  # fmt: skip

    def empty(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape, dtype=torch.float32)

    def between_chunks(
        self, x: Tensor, B: Tensor, boundary: Tensor | None, products: Tensor | None = None,
        kept: Tensor | None = None, reverse: bool = False,
    ) -> Tensor:  # fmt: skip
        """The states before the first chunk (`boundary`) and after each; or in reverse, from the gradient of
        y and C, the gradients of these, which times the states that are kept give `products`."""
        states = self.empty(*self.shape)
        first = states[:, -1 if reverse else 0]
        if boundary is None:
            first.zero_()
        else:
            first.copy_(boundary)
        channels, columns = _power(self.channels, BLOCK), _power(self.state_size, BLOCK)
        blocks = triton.cdiv(self.channels, channels) * triton.cdiv(self.state_size, columns)
        size = self.channels * self.state_size
        with torch.cuda.device_of(self.x):
            chunk_kernel[(self.batch * self.chunks * self.heads, blocks)](
                x, B, self.logs, self.documents, states, *x.stride()[:3], *B.stride()[:3], self.length,
                self.heads, self.heads // self.groups, self.channels, self.state_size, self.chunks,
                TO_END=not reverse, OPERAND=self.operand, CHUNK=self.chunk, TILE=self.tile,
                CHANNELS=channels, STATES=columns, num_warps=4, num_stages=2,
            )  # fmt: skip
            combine_kernel[(self.batch * self.heads, triton.cdiv(size, STATES_BLOCK))](
                states, self.logs, self.documents, kept, products, self.heads, size, self.chunks,
                REVERSE=reverse, CHUNK=self.chunk, BLOCK=STATES_BLOCK, num_warps=4,
            )  # fmt: skip
        return states

    def product(
        self, u: Tensor, v: Tensor, w: Tensor, states: Tensor, reverse: bool, out: Tensor,
        own: Tensor | None = None, sums: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Launch `product_kernel`: for y and the gradient of x, or for that of `own`, which is B or C."""
        inner, outer, parts = u.shape[-1], w.shape[-1], out.shape[2]
        groups = self.heads if own is None else self.groups
        strides = [stride for t in (u, v, w, w if own is None else own) for stride in t.stride()[:3]]
        strides += (1, self.state_size) if own is None else (self.state_size, 1)
        programs = self.batch * self.chunks * parts * (self.chunk // self.tile)
        block = self.columns(outer)
        with torch.cuda.device_of(self.x):
            product_kernel[(programs, triton.cdiv(outer, block))](
                u, v, w, own, states, self.logs, self.documents, out, sums, *strides, self.length,
                self.heads, self.heads // u.shape[2], self.heads // w.shape[2], inner, outer,
                self.chunks, parts // groups, self.heads // groups, triton.cdiv(self.heads, parts),
                REVERSE=reverse, OPERAND=self.operand, CHUNK=self.chunk, TILE=self.tile,
                INNER=_power(inner, BLOCK), OUTER=block, num_warps=self.warps, num_stages=self.stages,
            )  # fmt: skip

    def columns(self, outer: int) -> int:
        return _power(outer, BLOCK)

    def parts(self) -> int:
        """Into how many parts the heads are split whose gradients of B and C are summed in one program."""
        share = self.heads // self.groups
        programs = self.batch * self.chunks * (self.chunk // self.tile) * self.groups
        programs *= triton.cdiv(self.state_size, self.columns(self.state_size))
        wanted = triton.cdiv(ENOUGH_PROGRAMS * multiprocessors(self.x.device), programs)
        splits = triton.cdiv(share, triton.cdiv(share, min(share, wanted)))
        return self.groups * splits


def forward(inputs: SSDInputs, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, L, H, P) in x's dtype, the final state (B, H, P, N) fp32, and for backward the states between
    chunks, of shape `states_shape`, or an empty tensor."""
    ssd = _Launcher(inputs)
    states = ssd.between_chunks(ssd.x, ssd.B, inputs.initial_state)
    y = inputs.x.new_empty(inputs.x.shape)
    ssd.product(ssd.C, ssd.B, ssd.x, states, False, y)
    return y, states[:, -1].clone(), states if keep_states else states.new_empty(0)


def backward(
    grad_y: Tensor, grad_final_state: Tensor | None, inputs: SSDInputs, states: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, log_decay, B, C in their dtypes and of the initial state in fp32; `states` are those
    that `forward` kept."""
    ssd, grad_y = _Launcher(inputs), rows(grad_y)
    later = earlier = products = None
    if ssd.logs is not None:
        blocks = triton.cdiv(ssd.state_size, ssd.columns(ssd.state_size))
        later, earlier = ssd.empty(2, blocks, *ssd.logs.shape)
        size = ssd.channels * ssd.state_size
        products = ssd.empty(*ssd.logs.shape[:3], triton.cdiv(size, STATES_BLOCK))
    adjoints = ssd.between_chunks(
        grad_y, ssd.C, grad_final_state, products, None if products is None else states, reverse=True
    )
    grad_x = inputs.x.new_empty(inputs.x.shape)
    ssd.product(ssd.B, ssd.C, grad_y, adjoints, True, grad_x)
    partial = ssd.empty(2, ssd.batch, ssd.length, ssd.parts(), ssd.state_size)
    ssd.product(grad_y, ssd.x, ssd.B, states, False, partial[1], ssd.C, later)
    ssd.product(ssd.x, grad_y, ssd.C, adjoints, True, partial[0], ssd.B, earlier)
    grad_B, grad_C = (
        part.unflatten(2, (ssd.groups, -1)).sum(3).to(t.dtype)
        for part, t in zip(partial, (inputs.B, inputs.C), strict=True)
    )
    grad_log_decay = None
    if inputs.log_decay is not None and products is not None:
        grad_log_decay = inputs.log_decay.new_empty(inputs.log_decay.shape)
        with torch.cuda.device_of(grad_y):
            decay_kernel[(ssd.batch * ssd.chunks * ssd.heads,)](
                later, earlier, products.sum(-1), ssd.start, ssd.documents, grad_log_decay,
                ssd.length, ssd.heads, ssd.chunks, blocks, CHUNK=ssd.chunk, num_warps=8,
            )  # fmt: skip
    return grad_x, grad_log_decay, grad_B, grad_C, adjoints[:, 0].clone()
