"""Documents from local files: a file, a folder or a glob, of text or of anything else."""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from mambabyte.config.settings import Settings, setting, shown
from mambabyte.data.sources.documents import Document, held_out
from mambabyte.errors import UserError

_CHUNK = 1 << 20


class FileDocument(Document):
    """Bytes [start, stop) of a file, decompressed; read on demand."""

    def __init__(self, name: str, path: Path, start: int = 0, stop: int | None = None) -> None:
        for field, value in (("name", name), ("path", path), ("start", start), ("stop", stop)):
            object.__setattr__(self, field, value)

    path: Path
    start: int
    stop: int | None

    @property
    def data(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        with explaining_read_errors(self.path), _open(self.path) as file:
            position = file.seek(self.start) if self.start else 0
            while self.stop is None or position < self.stop:
                size = _CHUNK if self.stop is None else min(_CHUNK, self.stop - position)
                chunk = file.read(size)
                if not chunk:
                    break
                position += len(chunk)
                yield chunk


@dataclass
class FilesSource(Settings):
    """One document for each file, its bytes unchanged, in splits "train" and "validation", sorted by path.

    Files named .gz and .zst are decompressed. Each line of a .jsonl (also compressed) and each row of a
    .parquet is a document of its own.

    A document is held out for validation when the hash of its name is below validation_fraction. If that
    leaves one of the splits empty, as in a corpus of one document, the last validation_fraction of every
    document's bytes is held out instead. 0 holds out nothing, 1 everything.

    Attributes:
        path: a file, a folder (all below it except hidden files), a glob, or a list of those.
        text_column: the key or column of the text in .jsonl and .parquet files.
    """

    section: ClassVar[str] = "data"
    path: str | Path | list[str | Path] | None
    # An int stays one: identity() names it, and 0 and 0.0 are different JSON.
    validation_fraction: float | int = setting(default=0.05, at_least=0, at_most=1)
    text_column: str = "text"

    def __post_init__(self) -> None:
        if not self.paths or not all(self.paths):
            raise UserError(
                f"data.path must name a file, a folder or a glob, or a list of those, not {shown(self.path)}"
            )

    @property
    def paths(self) -> list[str]:
        return [str(path) for path in (self.path if isinstance(self.path, list) else [self.path or ""])]

    def documents(self, split: str) -> Iterator[Document]:
        if split not in ("train", "validation"):
            raise UserError(f"data=files has splits train and validation, not {split!r}")
        fraction = self.validation_fraction
        by_name = self._both_splits_by_name()
        for document in self._all():
            if by_name:
                if held_out(document.name, fraction) == (split == "validation"):
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
        if self.validation_fraction in (0, 1):
            return ("validation",) if self.validation_fraction else ("train",)
        return ("train", "validation")

    def expected_bytes(self, split: str) -> int | None:
        """Roughly the size of the split; None if files are compressed."""
        total = 0
        for name, path in self._files():
            if name.lower().endswith((".gz", ".zst")):
                return None
            if name.lower().endswith(".parquet"):
                with explaining_read_errors(path):
                    total += _parquet_bytes(path, self.text_column)
            else:
                total += path.stat().st_size
        share = self.validation_fraction if split == "validation" else 1 - self.validation_fraction
        return round(total * share)

    def identity(self) -> dict[str, Any]:
        files = [(name, path.stat()) for name, path in self._files()]
        return {
            "source": "FilesSource",
            "files": [[name, status.st_size, status.st_mtime_ns] for name, status in files],
            "validation_fraction": self.validation_fraction,
            "text_column": self.text_column,
        }

    def _both_splits_by_name(self) -> bool:
        """Whether holding out by name leaves both splits a document. A few documents usually decide."""
        if self.validation_fraction in (0, 1):
            return True
        seen = set()
        for document in self._all():
            if any(document.chunks()):
                seen.add(held_out(document.name, self.validation_fraction))
            if len(seen) == 2:
                return True
        return False

    def _all(self) -> Iterator[Document]:
        for name, path in self._files():
            suffixes = name.lower().removesuffix(".gz").removesuffix(".zst")
            with explaining_read_errors(path):
                if name.lower().endswith(".parquet"):
                    yield from self._parquet(name, path)
                elif suffixes.endswith(".jsonl"):
                    yield from self._jsonl(name, path)
                else:
                    yield FileDocument(name, path)

    def _jsonl(self, name: str, path: Path) -> Iterator[Document]:
        with _open(path) as file:
            for row, line in enumerate(file):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise UserError(f"line {row + 1} of {path} is not JSON: {error}") from error
                if not isinstance(record, dict) or self.text_column not in record:
                    columns = list(record) if isinstance(record, dict) else []
                    raise missing_column(self.text_column, columns, f"line {row + 1} of {path}")
                yield Document(
                    f"{name}:{row}", text_bytes(record[self.text_column], self.text_column, str(path))
                )

    def _parquet(self, name: str, path: Path) -> Iterator[Document]:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            if self.text_column not in file.schema_arrow.names:
                raise missing_column(self.text_column, file.schema_arrow.names, str(path))
            row = 0
            for batch in file.iter_batches(batch_size=16, columns=[self.text_column]):
                column = batch.column(0)
                if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
                    column = column.cast(pyarrow.large_binary())  # the bytes as stored, valid UTF-8 or not
                for value in column.to_pylist():
                    yield Document(f"{name}:{row}", text_bytes(value, self.text_column, str(path)))
                    row += 1

    def _files(self) -> list[tuple[str, Path]]:
        """(name, path) of every file that is not empty, sorted by name; names are relative to the folder of
        them all."""
        roots: set[str] = set()
        found: set[Path] = set()
        for pattern in self.paths:
            expanded = os.path.abspath(os.path.expanduser(pattern))
            matches = [expanded] if os.path.exists(expanded) else glob.glob(expanded, recursive=True)
            if not matches:
                raise UserError(f"no file matches data.path {pattern!r}; name one that exists")
            for match in map(Path, matches):
                roots.add(str(match if match.is_dir() else match.parent))
                found.update(_walk(match))
        files = [path for path in found if path.stat().st_size]
        if not files:
            raise UserError(f"data.path {', '.join(self.paths)} holds no bytes; name files that do")
        base = os.path.commonpath(roots)
        return sorted((path.relative_to(base).as_posix(), path) for path in files)


def _walk(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        for folder, subfolders, names in os.walk(path):
            # A prepared corpus (mambabyte.data.corpus) holds copies of documents, not documents.
            if {"bytes.bin", "meta.json"} <= set(names) and {"offsets.bin", "offsets.npy"} & set(names):
                subfolders.clear()
                continue
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                file = Path(folder, name)
                if not name.startswith(".") and file.is_file():
                    yield file


def _parquet_bytes(path: Path, column: str) -> int:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        metadata = file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)


def missing_column(column: str, columns: list[str], where: str) -> UserError:
    """The error about a missing text column, which lists the existing ones."""
    known = ", ".join(map(str, columns)) or "none"
    return UserError(f"{where} has no column {column!r}; set data.text_column to one of: {known}")


def text_bytes(value: Any, column: str, where: str) -> bytes:
    """A cell as bytes: text in UTF-8, bytes unchanged, a missing value as no bytes."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    raise UserError(f"column {column!r} of {where} holds {type(value).__name__}, not text")


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".zst":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(
            path.open("rb"), read_across_frames=True, closefd=True
        )
        return io.BufferedReader(reader, 1 << 20)
    return path.open("rb")


@contextmanager
def explaining_read_errors(name: str | Path) -> Iterator[None]:
    """Turn the errors of files and their formats into a UserError."""
    import pyarrow
    import zstandard

    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, pyarrow.ArrowException) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot read {name}: {reason}") from error
