"""One byte through a whole stack of Mamba blocks."""

from mambabyte.ops.step.interface import MambaBlockWeights, mamba_step, serves_mamba_step

__all__ = ["MambaBlockWeights", "mamba_step", "serves_mamba_step"]
