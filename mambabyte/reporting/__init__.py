"""Tables and figures over finished and unfinished runs, from what their directories record."""

from mambabyte.reporting.comparison import Comparison, compare
from mambabyte.runs.run import Run, find_runs, read_run

__all__ = ["Comparison", "Run", "compare", "find_runs", "read_run"]
