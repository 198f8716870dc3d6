"""Documents, the windows cut from them, and the data module that serves the windows to a trainer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambabyte.data.datamodule import ByteDataModule
    from mambabyte.data.documents import Document, DocumentSource, source_from_config
    from mambabyte.data.files import FilesSource
    from mambabyte.data.held_out import HeldOutSource
    from mambabyte.data.huggingface import HuggingFaceSource
    from mambabyte.data.pg19 import PG19Source, PG19TextsSource
    from mambabyte.data.prepared import ByteCorpus, prepare
    from mambabyte.data.stdlib import StandardLibrarySource

__all__ = [
    "ByteCorpus",
    "ByteDataModule",
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
    "ByteCorpus": "prepared",
    "ByteDataModule": "datamodule",
    "FilesSource": "files",
    "HeldOutSource": "held_out",
    "HuggingFaceSource": "huggingface",
    "PG19Source": "pg19",
    "PG19TextsSource": "pg19",
    "StandardLibrarySource": "stdlib",
    "prepare": "prepared",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that evaluating or preparing a corpus does not import lightning.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'documents')}"), name)
