"""The residual addition and norm in plain PyTorch: the definition that every other backend must match."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def residual_norm_reference(
    residual: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor | None, epsilon: float, rms: bool
) -> tuple[Tensor, Tensor]:
    """As `mambabyte.ops.residual_norm`, both outputs in the residual's dtype."""
    x = residual if update is None else residual + update.to(residual.dtype)
    with torch.autocast(residual.device.type, enabled=False):
        if rms:
            out = functional.rms_norm(x, weight.shape, weight.to(x.dtype), epsilon)
            return (out if bias is None else out + bias), x
        bias = None if bias is None else bias.to(x.dtype)
        return functional.layer_norm(x, weight.shape, weight.to(x.dtype), bias, epsilon), x
