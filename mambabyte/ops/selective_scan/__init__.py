"""Mamba's selective scan: one function, several backends, the same numbers."""

from mambabyte.ops.selective_scan.interface import selective_scan

__all__ = ["selective_scan"]
