"""Mamba's selective scan on several backends that agree."""

from mambabyte.ops.selective_scan.interface import selective_scan

__all__ = ["selective_scan"]
