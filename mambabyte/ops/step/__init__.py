"""One byte through a whole stack of Mamba blocks."""

from mambabyte.ops.step.cpu import (
    STORAGE,
    EmbeddingWeights,
    MambaBlockWeights,
    MambaWeights,
    PreparedMamba,
)
from mambabyte.ops.step.interface import mamba_step, step_backend
from mambabyte.ops.step.kept import KeptWeights
from mambabyte.ops.step.windows import MambaStepper

__all__ = [
    "STORAGE",
    "EmbeddingWeights",
    "KeptWeights",
    "MambaBlockWeights",
    "MambaStepper",
    "MambaWeights",
    "PreparedMamba",
    "mamba_step",
    "step_backend",
]
