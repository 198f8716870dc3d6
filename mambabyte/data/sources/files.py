"""Documents from local files: a file, a folder or a glob, of text or of anything else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mambabyte.config.settings import Settings, setting, shown
from mambabyte.data.sources.columns import missing_column, text_bytes
from mambabyte.data.sources.documents import Document, held_out
from mambabyte.data.sources.finding import FoundFile, find_files
from mambabyte.data.sources.opening import (
    FileDocument,
    content_hashes,
    explaining_read_errors,
    open_file,
    refuse_unreadable,
    without_compression,
)
from mambabyte.data.sources.parquet import LocalShard, RowGroup, row_groups
from mambabyte.errors import UserError

HELD_OUT = 0.05  # share of the documents, unless a setting says another


@dataclass
class FilesSource(Settings):
    """One document for each file, its bytes unchanged, in splits "train" and "validation", sorted by path.

    Files named .gz, .bz2, .xz and .zst are decompressed; archives, and compressed files under other names,
    are refused. Each line of a .jsonl (also compressed) and each row of a .parquet is a document of its own.

    A document is held out for validation when the hash of its path below the folder that ``path`` names is
    below validation_fraction. If that leaves one of the splits empty, as in a corpus of one document, the
    last validation_fraction of every document's bytes is held out instead. 0 holds out nothing, 1 everything.

    Attributes:
        path: a file, a folder (all below it except hidden files), a glob, or a list of those.
        validation_fraction: None: 0.05.
        text_column: the key or column of the text in .jsonl and .parquet files.
    """

    section: ClassVar[str] = "data"
    path: str | Path | list[str | Path] | None
    # An int stays one: identity() names it, and 0 and 0.0 are different JSON.
    validation_fraction: float | int | None = setting(default=None, at_least=0, at_most=1)
    text_column: str = "text"

    def __post_init__(self) -> None:
        if not self.paths or not all(self.paths):
            raise UserError(
                f"data.path must name a file, a folder or a glob, or a list of those, not {shown(self.path)}"
            )

    @property
    def _fraction(self) -> float | int:
        return HELD_OUT if self.validation_fraction is None else self.validation_fraction

    @property
    def paths(self) -> list[str]:
        return [str(path) for path in (self.path if isinstance(self.path, list) else [self.path or ""])]

    def documents(self, split: str) -> Iterator[Document]:
        if split not in ("train", "validation"):
            raise UserError(f"data=files has splits train and validation, not {split!r}")
        fraction = self._fraction
        by_name = self._both_splits_by_name()
        for key, document in self._all():
            if by_name:
                if held_out(key, fraction) == (split == "validation"):
                    yield document
            else:
                length = sum(map(len, document.chunks()))
                border = length - round(fraction * length)
                if isinstance(document, FileDocument):
                    start, stop = (border, None) if split == "validation" else (0, border)
                    yield FileDocument(document.name, document.path, start, stop)
                else:
                    data = document.data[border:] if split == "validation" else document.data[:border]
                    yield Document(document.name, data)

    @property
    def splits(self) -> tuple[str, ...]:
        if self._fraction in (0, 1):
            return ("validation",) if self._fraction else ("train",)
        return ("train", "validation")

    def expected_bytes(self, split: str) -> int | None:
        """Roughly the size of the split; None if files are compressed."""
        total = 0
        for file in self._files():
            name = file.name.lower()
            if name != without_compression(name):
                return None
            if name.endswith(".parquet"):
                total += sum(group.num_bytes for group in self._row_groups(file))
            else:
                with explaining_read_errors(file.path):
                    total += file.path.stat().st_size
        share = self._fraction if split == "validation" else 1 - self._fraction
        return round(total * share)

    def identity(self) -> dict[str, Any]:
        files = self._files()
        hashes = content_hashes([file.path for file in files])
        return {
            "source": "FilesSource",
            "files": [[file.name, file.key, sha256] for file, sha256 in zip(files, hashes, strict=True)],
            "validation_fraction": self._fraction,
            "text_column": self.text_column,
        }

    def _files(self) -> list[FoundFile]:
        return find_files(self.paths)

    def _row_groups(self, file: FoundFile) -> list[RowGroup]:
        return row_groups(LocalShard(str(file.path)), self.text_column)

    def _both_splits_by_name(self) -> bool:
        """Whether holding out by name leaves both splits a document. A few documents usually decide."""
        if self._fraction in (0, 1):
            return True
        seen = set()
        for key, document in self._all():
            if any(document.chunks()):
                seen.add(held_out(key, self._fraction))
            if len(seen) == 2:
                return True
        return False

    def _all(self) -> Iterator[tuple[str, Document]]:
        """Every document, after the key whose hash chooses its split."""
        for file in self._files():
            if file.name.lower().endswith(".parquet"):
                rows = (data.tobytes() for group in self._row_groups(file) for data in group.documents())
                yield from _numbered(file, enumerate(rows))
                continue
            with explaining_read_errors(file.path):
                refuse_unreadable(file.path)
                if without_compression(file.name).endswith(".jsonl"):
                    yield from _numbered(file, self._jsonl(file.path))
                else:
                    yield file.key, FileDocument(file.name, file.path)

    def _jsonl(self, path: Path) -> Iterator[tuple[int, bytes]]:
        with open_file(path) as file:
            for row, line in enumerate(file):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"line {row + 1} of {path} is not JSON: {error}") from error
                if not isinstance(record, dict) or self.text_column not in record:
                    columns = list(record) if isinstance(record, dict) else []
                    raise missing_column(self.text_column, columns, f"line {row + 1} of {path}")
                yield row, text_bytes(record[self.text_column], self.text_column, str(path))


def _numbered(file: FoundFile, rows: Iterable[tuple[int, bytes]]) -> Iterator[tuple[str, Document]]:
    for row, data in rows:
        yield f"{file.key}:{row}", Document(f"{file.name}:{row}", data)
