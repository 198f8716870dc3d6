"""The state space dual form: a linear recurrence with one decay per head, computed by matrix products."""

from mambabyte.ops.ssd.interface import ssd

__all__ = ["ssd"]
