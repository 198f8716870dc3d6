"""The residual stream's addition and the norm after it."""

from mambabyte.ops.residual_norm.interface import residual_norm

__all__ = ["residual_norm"]
