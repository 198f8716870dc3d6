"""Byte-level language models: train, measure and use them. Importing this package imports no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambabyte import models, ops
    from mambabyte.checkpoints import load_model as load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "models", "ops"]


def __getattr__(name: str) -> Any:
    if name == "load":
        return import_module("mambabyte.checkpoints").load_model
    if name in ("models", "ops"):
        return import_module(f"mambabyte.{name}")
    raise AttributeError(f"module 'mambabyte' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
