"""One byte through a whole stack of Mamba blocks."""

from mambabyte.ops.step.cpu import MambaBlockWeights, MambaWeights
from mambabyte.ops.step.interface import mamba_step, serves_mamba_step

__all__ = ["MambaBlockWeights", "MambaWeights", "mamba_step", "serves_mamba_step"]
