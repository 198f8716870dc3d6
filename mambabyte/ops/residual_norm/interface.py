"""The residual stream's addition and the norm after it: what runs between two Mamba blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from mambabyte.ops.backends import choose_backend
from mambabyte.ops.residual_norm.custom_op import residual_norm_fused
from mambabyte.ops.residual_norm.reference import residual_norm_reference


def residual_norm(
    residual: Tensor,
    update: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    rms: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The layer norm (arXiv 1607.06450) or RMS norm (arXiv 1910.07467) of x = residual + update, and x:

        layer norm:  out = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias
        RMS norm:    out = x / sqrt(mean(x^2) + epsilon) * weight + bias

    Args:
        residual: (..., d), fp32 or fp64. update: the same shape, or None for zero. weight: (d).
        bias: (d) or None. rms: whether to use the RMS norm.
        backend: "cpu", "triton" (up to 8,192 channels) or "reference"; by default the first that serves the
            residual's device and dtype, and as many channels. See `mambabyte.ops.backends`.

    Returns:
        out, in autocast's dtype where autocast is on and otherwise in the weight's, and x in the residual's.

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot serve these tensors.
    """
    if residual.shape[-1:] != weight.shape or (update is not None and update.shape != residual.shape):
        raise ValueError(
            "residual (..., d), update (..., d) and weight (d) do not fit: "
            f"{[None if t is None else tuple(t.shape) for t in (residual, update, weight)]}"
        )
    device = residual.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    asked = {"width": weight.numel()}
    backend = choose_backend("residual_norm", residual.device, residual.dtype, backend, **asked)
    if backend == "reference":
        out, x = residual_norm_reference(residual, update, weight, bias, epsilon, rms)
        return out.to(dtype), x
    return residual_norm_fused(residual, update, weight, bias, epsilon, rms, dtype, backend)
