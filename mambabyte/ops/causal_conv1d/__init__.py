"""Depthwise causal convolution followed by SiLU."""

from mambabyte.ops.causal_conv1d.interface import causal_conv1d

__all__ = ["causal_conv1d"]
