"""One byte through a whole stack of Mamba blocks."""

from mambabyte.ops.step.cpu import STORAGE, MambaBlockWeights, MambaStepper, MambaWeights, PreparedMamba
from mambabyte.ops.step.interface import mamba_step, step_backend
from mambabyte.ops.step.kept import KeptWeights

__all__ = [
    "STORAGE",
    "KeptWeights",
    "MambaBlockWeights",
    "MambaStepper",
    "MambaWeights",
    "PreparedMamba",
    "mamba_step",
    "step_backend",
]
