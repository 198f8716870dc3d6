"""A split on disk as one byte file with a document index, written once and then memory-mapped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from mambabyte.data.corpus.writer import CorpusWriter, explaining_write_errors
from mambabyte.data.sources.documents import Document, DocumentSource, identity_of
from mambabyte.errors import UserError
from mambabyte.runtime.progress import Progress

_FORMAT = 2
_HASH_CHUNK = 1 << 24


class Names(Sequence[str]):
    """The documents' names, stored end to end in one array like the documents, and decoded on access."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        self._text, self._offsets = text, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        name = self._text[self._offsets[index] : self._offsets[index + 1]]
        return name.tobytes().decode("utf-8", "surrogateescape")

    def between(self, first: int, last: int) -> Names:
        """A view of names [first, last)."""
        return Names(self._text, self._offsets[first : last + 1])


class ByteCorpus:
    """Documents end to end in one array.

    Attributes:
        bytes: (num_bytes,) uint8.
        offsets: (num_documents + 1,) int64, document i being bytes[offsets[i]:offsets[i + 1]].
        names: one per document.
        meta: what the corpus was made from.
    """

    def __init__(
        self, bytes: np.ndarray, offsets: np.ndarray, names: Sequence[str], meta: dict[str, Any] | None = None
    ) -> None:
        self.bytes = bytes
        self.offsets = offsets
        self.names = names
        self.meta = meta or {}

    @property
    def num_bytes(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """One document: a (length,) uint8 view."""
        return self.bytes[self.offsets[index] : self.offsets[index + 1]]

    def part(self, first: int, last: int) -> ByteCorpus:
        """Documents [first, last) as a corpus: views, but for the offsets."""
        begin, end = self.offsets[first], self.offsets[last]
        names = self.names
        between = names.between(first, last) if isinstance(names, Names) else names[first:last]
        return ByteCorpus(self.bytes[begin:end], self.offsets[first : last + 1] - begin, between)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of the bytes followed by the offsets as little-endian int64."""
        digest = hashlib.sha256()
        for start in range(0, len(self.bytes), _HASH_CHUNK):
            digest.update(np.ascontiguousarray(self.bytes[start : start + _HASH_CHUNK]).data)
        digest.update(np.ascontiguousarray(self.offsets, dtype="<i8").data)
        return digest.hexdigest()


class MappedCorpus(ByteCorpus):
    """A prepared folder, whose files are mapped, not read."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / "meta.json").read_text("utf-8"))
            data = np.memmap(self.folder / "bytes.bin", dtype=np.uint8, mode="r")
            offsets = np.memmap(self.folder / "offsets.bin", dtype="<i8", mode="r")
            name_offsets = np.memmap(self.folder / "name_offsets.bin", dtype="<i8", mode="r")
            names = np.memmap(self.folder / "names.bin", dtype=np.uint8, mode="r")
            fingerprint = meta["fingerprint"]
            consistent = (
                len(data) == int(offsets[-1]) == meta["num_bytes"]
                and len(names) == int(name_offsets[-1])
                and meta["num_documents"] == len(offsets) - 1 == len(name_offsets) - 1
            )
        except (OSError, EOFError, ValueError, KeyError, IndexError) as error:
            raise UserError(f"prepared data in {folder} is damaged ({error}); delete that folder") from error
        if not consistent:
            raise UserError(f"prepared data in {folder} is damaged (sizes disagree); delete that folder")
        super().__init__(data, offsets, Names(names, name_offsets), meta)
        self.fingerprint = fingerprint

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by path: a data-loading worker maps the folder itself.
        return MappedCorpus, (self.folder,)


def prepare(source: DocumentSource, split: str, folder: Path, max_bytes: int | None = None) -> MappedCorpus:
    """Write one split of a source to <folder>/<key>/ unless it is there already, and open it.

    The key is a hash of the source's identity, the split and max_bytes. Memory holds only a chunk of a
    document at a time. Empty documents are left out. Other processes that need the same folder wait.

    An interrupted preparation is never mistaken for a corpus. The same call resumes it after the last
    document in its journal, and ends with the same bytes.

    Args:
        max_bytes: keep only so many first bytes, in the source's order; the last document may be truncated.

    Raises:
        UserError: the split is empty, or the folder cannot be written.
    """
    if max_bytes is not None and max_bytes < 1:
        raise UserError(f"the number of bytes to prepare must be at least 1, not {max_bytes}")
    folder = Path(folder).expanduser()
    description = {
        "format": _FORMAT,
        "identity": identity_of(source, split),
        "split": split,
        "max_bytes": max_bytes,
    }
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]
    final = folder / key
    if final.is_dir():
        return MappedCorpus(final)
    with explaining_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if final.is_dir():
            return MappedCorpus(final)
        partial = folder / f".{key}.part"
        writer = CorpusWriter(partial)
        try:
            _write(writer, source, split, max_bytes)
            writer.finish(description)
            with explaining_write_errors(folder):
                os.replace(partial, final)
        except BaseException:
            writer.interrupt()
            raise
        finally:
            writer.close()
    return MappedCorpus(final)


def _write(writer: CorpusWriter, source: DocumentSource, split: str, max_bytes: int | None) -> None:
    expected = source.expected_bytes(split) if hasattr(source, "expected_bytes") else None
    total = min((size for size in (expected, max_bytes) if size is not None), default=None)
    progress = Progress(f"preparing {split} data", total, writer.num_bytes)
    try:
        for document in _documents_after(source, split, writer.num_read):
            if writer.num_bytes == max_bytes:
                break
            writer.add(document, max_bytes)
            progress.show(writer.num_bytes, writer.num_documents)
    finally:
        progress.close()
    if writer.num_bytes == 0:
        raise UserError(
            f"the {split} split of this data holds no bytes; add data, or change data.validation_fraction"
        )


def _documents_after(source: DocumentSource, split: str, count: int) -> Iterator[Document]:
    """The documents without the first ``count``."""
    if count and hasattr(source, "documents_after"):
        return source.documents_after(split, count)
    return islice(source.documents(split), count, None)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare in a folder. The system releases the lock when a process dies."""
    with explaining_write_errors(folder):
        lock = (folder / ".lock").open("w")
    with lock:
        with explaining_write_errors(folder):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
