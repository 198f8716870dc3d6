"""Documents, the windows cut from them, and the data module that feeds the windows to a trainer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambabyte.data.corpus.corpus import ByteCorpus, prepare
    from mambabyte.data.datamodule import ByteDataModule
    from mambabyte.data.settings import DataSettings, source_from_config
    from mambabyte.data.sources.documents import Document, DocumentSource
    from mambabyte.data.sources.files import FilesSource
    from mambabyte.data.sources.held_out import HeldOutSource
    from mambabyte.data.sources.huggingface import HuggingFaceSource
    from mambabyte.data.sources.mixture import MixtureSource
    from mambabyte.data.sources.pg19 import PG19Source, PG19TextsSource
    from mambabyte.data.sources.stdlib import StandardLibrarySource
    from mambabyte.data.tasks import CopyingTask, InductionHeadsTask, SelectiveCopyingTask

__all__ = [
    "ByteCorpus",
    "ByteDataModule",
    "CopyingTask",
    "DataSettings",
    "Document",
    "DocumentSource",
    "FilesSource",
    "HeldOutSource",
    "HuggingFaceSource",
    "InductionHeadsTask",
    "MixtureSource",
    "PG19Source",
    "PG19TextsSource",
    "SelectiveCopyingTask",
    "StandardLibrarySource",
    "prepare",
    "source_from_config",
]
_MODULES = {
    "corpus.corpus": ("ByteCorpus", "prepare"),
    "datamodule": ("ByteDataModule",),
    "settings": ("DataSettings", "source_from_config"),
    "sources.documents": ("Document", "DocumentSource"),
    "sources.files": ("FilesSource",),
    "sources.held_out": ("HeldOutSource",),
    "sources.huggingface": ("HuggingFaceSource",),
    "sources.mixture": ("MixtureSource",),
    "sources.pg19": ("PG19Source", "PG19TextsSource"),
    "sources.stdlib": ("StandardLibrarySource",),
    "tasks": ("CopyingTask", "InductionHeadsTask", "SelectiveCopyingTask"),
}


def __getattr__(name: str) -> Any:
    # Lazy, so that evaluating or preparing a corpus does not import lightning.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
