"""The convolution on CUDA: launches the kernels of `triton_kernels.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from mambabyte.ops.causal_conv1d.custom_op import ConvInputs, cannot_serve  # noqa: F401, for `ops.backends`
from mambabyte.ops.causal_conv1d.triton_kernels import backward_kernel, forward_kernel, triton
from mambabyte.ops.triton import kernels
from mambabyte.ops.triton.kernels import multiprocessors

# Channels of a program, which is one warp, and rows that it reads at a time: as many as leave 16 warps their
# registers on a multiprocessor.
FORWARD_BLOCK, FORWARD_ROWS = 256, 8
BACKWARD_BLOCK, BACKWARD_ROWS = 128, 4
# Longer tiles read fewer rows twice and write fewer partial sums, down to this many warps a multiprocessor.
WARPS = 32
SHORTEST_TILE = 32  # steps


def _tiles(x: Tensor, block: int, rows: int) -> tuple[int, int]:
    """How many tiles the window is cut into, and steps in each: a multiple of `rows`."""
    batch, length, channels = x.shape
    wanted = WARPS * multiprocessors(x.device) // (batch * triton.cdiv(channels, block))
    steps = max(SHORTEST_TILE, triton.cdiv(length, max(wanted, 1)))
    steps = triton.cdiv(steps, rows) * rows
    return triton.cdiv(length, steps), steps


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _tensors(inputs: ConvInputs) -> tuple[Tensor, list[Tensor | None]]:
    """x and the four tensors after it, as the kernels read them."""
    x, weight, bias, initial_state, document_start = inputs
    start = kernels.as_bytes(document_start)
    return kernels.rows(x), [weight.contiguous(), bias.contiguous(), _contiguous(initial_state), start]


def forward(inputs: ConvInputs, return_final_state: bool) -> tuple[Tensor, Tensor | None]:
    """Output and final state: see `mambabyte.ops.causal_conv1d.custom_op`."""
    x, tensors = _tensors(inputs)
    (batch, length, channels), width = x.shape, inputs.weight.shape[1]
    out = x.new_empty(x.shape)
    final = x.new_empty(batch, width - 1, channels) if return_final_state else None
    tiles, steps = _tiles(x, FORWARD_BLOCK, FORWARD_ROWS)
    tiles += return_final_state
    with torch.cuda.device_of(x):
        forward_kernel[(triton.cdiv(channels, FORWARD_BLOCK) * tiles * batch,)](
            x, *tensors, out, final, x.stride(0), x.stride(1), length, channels, tiles, steps,
            WIDTH=width, ROWS=FORWARD_ROWS, BLOCK=FORWARD_BLOCK, num_warps=1,
        )  # fmt: skip
    return out, final


def backward(
    grad_out: Tensor, grad_final_state: Tensor | None, inputs: ConvInputs, wanted: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and the initial state."""
    x, tensors = _tensors(inputs)
    (batch, length, channels), width = x.shape, inputs.weight.shape[1]
    grad_out = kernels.rows(grad_out)
    grad_x = x.new_empty(x.shape) if wanted is None else wanted
    grad_state = None
    if inputs.initial_state is not None:
        grad_state = x.new_empty(batch, width - 1, channels, dtype=torch.float32)
    grad_weight, grad_bias = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[1:3])
    tiles, steps = _tiles(x, BACKWARD_BLOCK, BACKWARD_ROWS)
    partial = x.new_empty(batch * tiles, width + 1, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        backward_kernel[(triton.cdiv(channels, BACKWARD_BLOCK) * tiles * batch,)](
            x, *tensors, grad_out, _contiguous(grad_final_state), grad_x, grad_state, partial,
            x.stride(0), x.stride(1), grad_out.stride(0), grad_out.stride(1), grad_x.stride(1),
            length, channels, tiles, steps,
            WIDTH=width, ROWS=BACKWARD_ROWS, BLOCK=BACKWARD_BLOCK, num_warps=1,
        )  # fmt: skip
    kernels.sum_partials(partial, grad_weight, grad_bias)
    return grad_x, grad_weight, grad_bias, grad_state
