"""The fused CPU step: calls `mambabyte/ops/cpu/mamba_step.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambabyte.ops.cpu.arguments import fields, num_threads, pointer
from mambabyte.ops.cpu.build import kernel

State = list[tuple[Tensor, ...]]


class MambaBlockWeights(NamedTuple):
    """One block's parameters, in mamba_ssm's layouts. Letters as in `mambabyte.ops`; d model width, R rank of
    the step-size projection, W convolution width."""

    norm_weight: Tensor  # (d)
    norm_bias: Tensor | None
    in_proj: Tensor  # (2D, d)
    conv_weight: Tensor  # (D, W)
    conv_bias: Tensor  # (D)
    x_proj: Tensor  # (R + 2N, D)
    dt_proj: Tensor  # (D, R)
    dt_bias: Tensor  # (D)
    A_log: Tensor  # (D, N)
    D: Tensor  # (D)
    out_proj: Tensor  # (d, D)


class MambaWeights(NamedTuple):
    """A model's parameters without its embedding, with V the size of the vocabulary; `epsilon` and `rms` are
    of all norms."""

    blocks: Sequence[MambaBlockWeights]
    norm_weight: Tensor  # (d), of the final norm
    norm_bias: Tensor | None
    head: Tensor  # (V, d)
    epsilon: float
    rms: bool


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
        *fields(ctypes.c_void_p, "x head norm_weight norm_bias"),
        ("blocks", ctypes.POINTER(Block)),
        ("logits", ctypes.c_void_p),
    ]


def mamba_step_fused(x: Tensor, state: State, weights: MambaWeights) -> tuple[Tensor, State]:
    """As `mambabyte.ops.step.mamba_step`."""
    first, vocabulary = weights.blocks[0], len(weights.head)
    # The kernel reads contiguous memory; these locals keep the copies alive until it is done.
    x = x.float().contiguous()
    before = [tuple(tensor.float().contiguous() for tensor in layer) for layer in state]
    after: State = [tuple(torch.empty_like(tensor) for tensor in layer) for layer in before]
    blocks = [tuple(_contiguous(tensor) for tensor in block) for block in weights.blocks]
    layers = [Block(*map(pointer, sum(tensors, ()))) for tensors in zip(blocks, before, after, strict=True)]
    outer = {name: _contiguous(getattr(weights, name)) for name in ("head", "norm_weight", "norm_bias")}
    logits = torch.empty(len(x), vocabulary)
    arguments = Arguments(
        batch=len(x), layers=len(blocks), d_model=x.shape[1], d_inner=len(first.D),
        states=first.A_log.shape[1], width=first.conv_weight.shape[1], rank=first.dt_proj.shape[1],
        vocabulary=vocabulary, threads=num_threads(), rms=weights.rms, epsilon=weights.epsilon,
        x=pointer(x), blocks=(Block * len(blocks))(*layers), logits=pointer(logits),
        **{name: pointer(tensor) for name, tensor in outer.items()},
    )  # fmt: skip
    step = kernel("mamba_step", mamba_step_arguments=Arguments, mamba_step_block=Block)
    step(ctypes.byref(arguments))
    return logits, after


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
