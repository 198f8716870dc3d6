"""One byte through a whole stack of Mamba blocks."""

from mambabyte.ops.step.interface import mamba_step, serves_mamba_step
from mambabyte.ops.step.weights import MambaBlockWeights, MambaWeights

__all__ = ["MambaBlockWeights", "MambaWeights", "mamba_step", "serves_mamba_step"]
