"""Byte-level language models: train, measure and use them. Importing this package imports no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambabyte import models, ops
    from mambabyte.api import bits_per_byte, generate, save
    from mambabyte.checkpoints import load_model as load
    from mambabyte.generation import load_context, read, save_context
    from mambabyte.training.settings import TrainSettings
    from mambabyte.training.train import train

__version__ = "0.1.0"
__all__ = [
    "TrainSettings",
    "__version__",
    "bits_per_byte",
    "generate",
    "load",
    "load_context",
    "models",
    "ops",
    "read",
    "save",
    "save_context",
    "train",
]
_HOMES = {
    "bits_per_byte": ("mambabyte.api", "bits_per_byte"),
    "generate": ("mambabyte.api", "generate"),
    "save": ("mambabyte.api", "save"),
    "read": ("mambabyte.generation", "read"),
    "save_context": ("mambabyte.generation", "save_context"),
    "load_context": ("mambabyte.generation", "load_context"),
    "load": ("mambabyte.checkpoints", "load_model"),
    "train": ("mambabyte.training.train", "train"),
    "TrainSettings": ("mambabyte.training.settings", "TrainSettings"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    if name in ("models", "ops"):
        return import_module(f"mambabyte.{name}")
    raise AttributeError(f"module 'mambabyte' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
