"""The operations of a Mamba block. Letters: B batch, L length, D inner channels, N state size."""

from mambabyte.ops.backends import Backend, backend_for, describe_backends, use_backend
from mambabyte.ops.causal_conv1d import causal_conv1d
from mambabyte.ops.residual_norm import residual_norm
from mambabyte.ops.selective_scan import selective_scan
from mambabyte.ops.ssd import ssd

__all__ = [
    "Backend",
    "backend_for",
    "causal_conv1d",
    "describe_backends",
    "residual_norm",
    "selective_scan",
    "ssd",
    "use_backend",
]
