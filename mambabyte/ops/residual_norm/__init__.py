"""Residual addition followed by a norm."""

from mambabyte.ops.residual_norm.interface import residual_norm

__all__ = ["residual_norm"]
