"""One byte through a whole stack of Mamba blocks: the step that generation repeats."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambabyte.ops.backends import choose_backend
from mambabyte.ops.cpu.arguments import num_threads, pointer
from mambabyte.ops.cpu.build import library

State = list[tuple[Tensor, ...]]


class MambaBlockWeights(NamedTuple):
    """One block's parameters, in mamba_ssm's layouts; letters as in `mambabyte.ops`, d model width, R rank of
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


def serves_mamba_step(parameter: Tensor) -> bool:
    """Whether `mamba_step` can run a model with such parameters here and now: fp32 on a CPU with compiled
    kernels, nothing to differentiate, no autocast, no compiler tracing."""
    return (
        not torch.is_grad_enabled()
        and parameter.dtype == torch.float32
        and not torch.is_autocast_enabled(parameter.device.type)
        and not torch.compiler.is_compiling()
        and choose_backend("mamba_step", parameter.device, parameter.dtype, None) == "cpu"
    )


def mamba_step(
    bytes: Tensor,
    embedding: Tensor,
    blocks: Sequence[MambaBlockWeights],
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    head: Tensor,
    state: State,
    epsilon: float,
    rms: bool,
) -> tuple[Tensor, State]:
    """Logits (B, V) and the new state after one more byte, in a single call for all layers (fp32, CPU).

    A row's result is the same bit for bit whatever else is in the batch and at any number of threads.

    Args:
        bytes: (B) integer. embedding, head: (V, d). norm_weight, norm_bias: (d), of the final norm.
        state: for each block the last inputs of its convolution (B, W-1, D) and its scan's state (B, D, N).
        epsilon, rms: of all norms, as in `residual_norm`.

    Raises:
        IndexError: a byte outside the vocabulary.
        ValueError: a state of another shape.
    """
    first = blocks[0]
    (batch,) = bytes.shape
    bytes = bytes.long().contiguous()
    shapes = [(batch, first.conv_weight.shape[1] - 1, first.D.shape[0]), (batch, *first.A_log.shape)]
    if len(state) != len(blocks) or any(
        [tuple(tensor.shape) for tensor in layer] != shapes for layer in state
    ):
        raise ValueError(f"each of the {len(blocks)} layers' states must have the shapes {shapes}")
    # The kernel reads plain rows; `kept` holds the copies, where one has to be made, until it is done.
    before = [tuple(tensor.float().contiguous() for tensor in layer) for layer in state]
    after: State = [tuple(torch.empty_like(tensor) for tensor in layer) for layer in before]
    kept = [tuple(None if w is None else w.contiguous() for w in block) for block in blocks]
    rows = (_Block * len(blocks))(
        *(
            _Block(*map(pointer, (*weights, *old, *new)))
            for weights, old, new in zip(kept, before, after, strict=True)
        )
    )
    outer = [None if w is None else w.contiguous() for w in (embedding, head, norm_weight, norm_bias)]
    logits = torch.empty(batch, head.shape[0])
    arguments = _Arguments(
        batch, len(blocks), embedding.shape[1], first.D.shape[0], first.A_log.shape[1],
        first.conv_weight.shape[1], first.dt_proj.shape[1], head.shape[0], num_threads(), rms,
        epsilon, pointer(bytes), *map(pointer, outer), rows, pointer(logits),
    )  # fmt: skip
    if library().mambabyte_mamba_step(ctypes.byref(arguments)):
        raise IndexError(f"bytes must be from 0 to {head.shape[0] - 1}")
    return logits, after


class _Block(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            *MambaBlockWeights._fields,
            *("conv_state", "scan_state", "next_conv_state", "next_scan_state"),
        )
    ]


class _Arguments(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (*("batch", "layers", "d_model", "d_inner", "states", "width", "rank", "vocabulary"),)
        ),
        ("threads", ctypes.c_int32),
        ("rms", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("bytes", "embedding", "head", "norm_weight", "norm_bias")),
        ("blocks", ctypes.POINTER(_Block)),
        ("logits", ctypes.c_void_p),
    ]
