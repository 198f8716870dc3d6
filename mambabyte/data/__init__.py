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
    from mambabyte.data.sources.pg19 import PG19Source, PG19TextsSource
    from mambabyte.data.sources.stdlib import StandardLibrarySource

__all__ = [
    "ByteCorpus",
    "ByteDataModule",
    "DataSettings",
    "Document",
    "DocumentSource",
    "FilesSource",
    "HeldOutSource",
    "HuggingFaceSource",
    "PG19Source",
    "PG19TextsSource",
    "StandardLibrarySource",
    "prepare",
    "source_from_config",
]
_HOMES = {
    "ByteCorpus": "corpus.corpus",
    "ByteDataModule": "datamodule",
    "DataSettings": "settings",
    "Document": "sources.documents",
    "DocumentSource": "sources.documents",
    "FilesSource": "sources.files",
    "HeldOutSource": "sources.held_out",
    "HuggingFaceSource": "sources.huggingface",
    "PG19Source": "sources.pg19",
    "PG19TextsSource": "sources.pg19",
    "StandardLibrarySource": "sources.stdlib",
    "prepare": "corpus.corpus",
    "source_from_config": "settings",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that evaluating or preparing a corpus does not import lightning.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
