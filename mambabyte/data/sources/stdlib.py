"""A corpus that comes with every Python: the source code of its standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mambabyte.config.settings import Settings, setting
from mambabyte.data.sources.documents import Document, held_out
from mambabyte.data.sources.finding import refuse_unlisted
from mambabyte.data.sources.opening import explaining_read_errors
from mambabyte.errors import UserError

# Tests are repetitive, and some distributions omit them. pydoc_data is one generated file of prose, which
# would be two thirds of the held-out bytes.
_SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "pydoc_data"),
    *("site-packages", "dist-packages", "__pycache__"),
}


@dataclass
class StandardLibrarySource(Settings):
    """The *.py files of the running Python's standard library, one document each, sorted by path.

    A file is held out for validation when the hash of its relative path is below validation_fraction, so
    every machine holds out the same files.
    """

    section: ClassVar[str] = "data"
    validation_fraction: float | int = setting(default=0.05, at_least=0, at_most=1)

    def documents(self, split: str) -> Iterator[Document]:
        if split not in ("train", "validation"):
            raise UserError(f"the standard library corpus has splits train and validation, not {split!r}")
        for name, path in self._files():
            if held_out(name, self.validation_fraction) == (split == "validation"):
                yield Document(name, _content(path))

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation")

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name, path in self._files():
            content = _content(path)
            digest.update(f"{name}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
            digest.update(content)
        return {
            "source": "StandardLibrarySource",
            "validation_fraction": self.validation_fraction,
            "sha256": digest.hexdigest(),
        }

    @staticmethod
    def _files() -> list[tuple[str, Path]]:
        root = Path(sysconfig.get_path("stdlib"))
        files = []
        for folder, subfolders, names in os.walk(root, onerror=refuse_unlisted):
            subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
            for name in names:
                path = Path(folder, name)
                # _sysconfigdata* holds paths of the machine that compiled this Python.
                generated = name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
                if name.endswith(".py") and not generated and path.is_file():
                    files.append((path.relative_to(root).as_posix(), path))
        if not files:
            raise UserError(
                f"this Python has no standard library sources in {root}; train on data=files instead"
            )
        return sorted(files)


def _content(path: Path) -> bytes:
    with explaining_read_errors(path):
        return path.read_bytes()
