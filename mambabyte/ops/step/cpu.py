"""The fused CPU step: calls `mambabyte/ops/cpu/mamba_step.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mambabyte.ops.cpu.arguments import fields, num_threads, pointer
from mambabyte.ops.cpu.build import kernel
from mambabyte.ops.step.weights import MambaBlockWeights, MambaWeights

State = list[tuple[Tensor, ...]]


class Block(ctypes.Structure):
    """MambaStepBlock of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_void_p, " ".join(MambaBlockWeights._fields)),
        *fields(ctypes.c_void_p, "conv_state scan_state next_conv_state next_scan_state"),
    ]


class Arguments(ctypes.Structure):
    """MambaStepArguments of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_int64, "batch layers d_model d_inner states width rank vocabulary"),
        *fields(ctypes.c_int32, "threads rms"),
        ("epsilon", ctypes.c_float),
        *fields(ctypes.c_void_p, "bytes embedding head norm_weight norm_bias"),
        ("blocks", ctypes.POINTER(Block)),
        ("logits", ctypes.c_void_p),
    ]


def mamba_step_fused(bytes: Tensor, state: State, weights: MambaWeights) -> tuple[Tensor, State]:
    """As `mambabyte.ops.step.mamba_step`."""
    first, (batch,) = weights.blocks[0], bytes.shape
    bytes = bytes.long().contiguous()
    # The kernel reads contiguous memory; `before`, `blocks` and `outer` keep copies alive until it is done.
    before = [tuple(tensor.float().contiguous() for tensor in layer) for layer in state]
    after: State = [tuple(torch.empty_like(tensor) for tensor in layer) for layer in before]
    blocks = [tuple(_contiguous(tensor) for tensor in block) for block in weights.blocks]
    rows = (Block * len(blocks))(
        *(
            Block(*map(pointer, (*block, *old, *new)))
            for block, old, new in zip(blocks, before, after, strict=True)
        )
    )
    outer = {
        name: _contiguous(getattr(weights, name))
        for name in ("embedding", "head", "norm_weight", "norm_bias")
    }
    logits = torch.empty(batch, weights.head.shape[0])
    arguments = Arguments(
        batch=batch,
        layers=len(blocks),
        d_model=weights.embedding.shape[1],
        d_inner=first.D.shape[0],
        states=first.A_log.shape[1],
        width=first.conv_weight.shape[1],
        rank=first.dt_proj.shape[1],
        vocabulary=weights.head.shape[0],
        threads=num_threads(),
        rms=weights.rms,
        epsilon=weights.epsilon,
        bytes=pointer(bytes),
        blocks=rows,
        logits=pointer(logits),
        **{name: pointer(tensor) for name, tensor in outer.items()},
    )
    step = kernel("mamba_step", mamba_step_arguments=Arguments, mamba_step_block=Block)
    if step(ctypes.byref(arguments)):
        raise IndexError(f"bytes must be from 0 to {weights.head.shape[0] - 1}")
    return logits, after


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
