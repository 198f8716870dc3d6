"""One byte through a whole stack of Mamba blocks: the step that generation repeats.

It has no `reference.py`: where `step_backend` says reference, `MambaByte` runs a window of one byte through
the other ops, and the tests compare the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mambabyte.ops.backends import choose_backend
from mambabyte.ops.step.cpu import PreparedMamba, State, mamba_step_fused


def step_backend(parameter: Tensor) -> str:
    """What steps a model with such parameters here and now: `cpu` if they are fp32, `triton` if they are fp32
    or bf16, there is nothing to differentiate, no autocast and no compiler tracing; else `reference`."""
    served = (torch.float32,) if parameter.device.type == "cpu" else (torch.float32, torch.bfloat16)
    if (
        torch.is_grad_enabled()
        or parameter.dtype not in served
        or torch.is_autocast_enabled(parameter.device.type)
        or torch.compiler.is_compiling()
    ):
        return "reference"
    return choose_backend("mamba_step", parameter.device, parameter.dtype, None)


def mamba_step(x: Tensor, state: State, weights: PreparedMamba) -> tuple[Tensor, State]:
    """Logits (B, V) and the new state after one more byte, in a single call for all layers (fp32, CPU).

    A row's result is the same bit for bit in any batch and at any number of threads.

    Args:
        x: (B, d), the embedded bytes.
        state: for each block the last inputs of its convolution (B, W-1, D) and its scan's state (B, D, N).

    Raises:
        ValueError: x or a state of another shape.
    """
    return mamba_step_fused(x, state, weights)
