"""Tables and figures over finished and unfinished runs."""

from mambabyte.reporting.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
