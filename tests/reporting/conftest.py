"""Run directories to report on."""

from tests.runs.conftest import write_run

__all__ = ["write_run"]
