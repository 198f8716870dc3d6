"""Writes the files of a prepared corpus so that an interrupted preparation can resume."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mambabyte.data.sources.documents import Document
from mambabyte.errors import UserError
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.system_errors import cannot_write
from mambabyte.runtime.valid_json import valid_json

FILES = ("bytes.bin", "offsets.bin", "names.bin", "name_offsets.bin")
_BUFFER = 1 << 20
JOURNAL_SECONDS = 10.0  # between two entries of the journal


class CorpusWriter:
    """The files of an unfinished corpus, and a journal of the documents that are complete in them.

    A folder with a valid journal is resumed from it: files are truncated to the recorded size and must have
    the recorded sha256. Anything else in the folder is deleted.

    Attributes:
        num_read: documents read from the source, empty ones included.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_read = 0
        self.num_documents = 0
        self._journal_due = time.monotonic() + JOURNAL_SECONDS
        self._journaled = False
        self._between_documents = True  # no document is partly written
        with explaining_write_errors(folder.parent):
            if not self._resume():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                self._files = {name: _HashedFile(folder / name) for name in FILES}
                for name in ("offsets.bin", "name_offsets.bin"):
                    self._files[name].append(_int64(0))

    @property
    def num_bytes(self) -> int:
        return self._files["bytes.bin"].size

    def add(self, document: Document, max_bytes: int | None = None) -> None:
        """Append a document, unless it is empty, until the corpus has max_bytes."""
        self._between_documents = False
        data, names = self._files["bytes.bin"], self._files["names.bin"]
        before = data.size
        for chunk in document.chunks():
            if max_bytes is not None:
                chunk = chunk[: max_bytes - data.size]
            if not chunk:
                break
            data.append(chunk)
        self.num_read += 1
        if data.size > before:
            self.num_documents += 1
            self._files["offsets.bin"].append(_int64(data.size))
            names.append(document.name.encode("utf-8", "surrogateescape"))
            self._files["name_offsets.bin"].append(_int64(names.size))
        self._between_documents = True
        if time.monotonic() > self._journal_due:
            self.journal()

    def journal(self) -> None:
        """Flush everything to disk and record how far it goes."""
        for file in self._files.values():
            file.sync()
        record = {
            "taken": self.num_read,
            "num_documents": self.num_documents,
            "files": {name: [file.size, file.sha256] for name, file in self._files.items()},
        }
        journal = self.folder / "journal.json"
        with explaining_write_errors(self.folder.parent), atomic_write(journal) as stream:
            stream.write(valid_json(record).encode())
        self._journaled = True
        self._journal_due = time.monotonic() + JOURNAL_SECONDS

    def finish(self, description: dict[str, Any]) -> None:
        """Write meta.json, which completes the corpus."""
        for file in self._files.values():
            file.sync()
        meta = {
            **description,
            "num_bytes": self.num_bytes,
            "num_documents": self.num_documents,
            "fingerprint": self._fingerprint(),
            "sha256": {name: file.sha256 for name, file in self._files.items()},
        }
        with explaining_write_errors(self.folder.parent):
            with atomic_write(self.folder / "meta.json") as stream:
                stream.write((valid_json(meta, indent=1) + "\n").encode())
            (self.folder / "journal.json").unlink(missing_ok=True)

    def interrupt(self) -> None:
        """Keep what a later preparation can resume from; delete the folder if there is nothing."""
        consistent = self._between_documents and all(file.flushed for file in self._files.values())
        if self.num_documents and consistent:
            with suppress(UserError):  # the disk may be full; then the previous journal counts, if any
                self.journal()
        if not self._journaled:
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _fingerprint(self) -> str:
        digest = self._files["bytes.bin"].digest.copy()
        with (self.folder / "offsets.bin").open("rb") as file:
            for chunk in _chunks(file):
                digest.update(chunk)
        return digest.hexdigest()

    def _resume(self) -> bool:
        try:
            record = json.loads((self.folder / "journal.json").read_text("utf-8"))
            files = {name: _HashedFile(self.folder / name, *record["files"][name]) for name in FILES}
            self.num_read, self.num_documents = record["taken"], record["num_documents"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self._files = files
        self._journaled = True
        return True


class _HashedFile:
    """A file to append to after its first ``size`` bytes, if they have the given sha256; else ValueError."""

    def __init__(self, path: Path, size: int = 0, sha256: str | None = None) -> None:
        self.digest = hashlib.sha256()
        self.size = size
        self.flushed = True  # False if a write failed
        self._folder = path.parent.parent
        self._buffer: list[bytes] = []
        self._num_buffered = 0
        self._file = path.open("r+b" if size else "wb", buffering=0)
        try:
            if size:
                self._file.truncate(min(size, os.fstat(self._file.fileno()).st_size))
                for chunk in _chunks(self._file):
                    self.digest.update(chunk)
                if self.digest.hexdigest() != sha256:
                    raise ValueError(f"{path} does not match its journal")
        except BaseException:
            self._file.close()
            raise

    @property
    def sha256(self) -> str:
        return self.digest.hexdigest()

    def append(self, data: bytes) -> None:
        self._buffer.append(data)
        self._num_buffered += len(data)
        self.size += len(data)
        if self._num_buffered >= _BUFFER:
            self._write()

    def sync(self) -> None:
        self._write()
        with explaining_write_errors(self._folder):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()

    def _write(self) -> None:
        data = b"".join(self._buffer) if len(self._buffer) != 1 else self._buffer[0]
        self.flushed = False
        self._buffer, self._num_buffered = [], 0
        self.digest.update(data)
        rest = memoryview(data)
        with explaining_write_errors(self._folder):
            while rest:
                rest = rest[self._file.write(rest) :]
        self.flushed = True


@contextmanager
def explaining_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fault = cannot_write(folder, error, "data.folder=", kind="prepared data in")
        raise UserError(f"{fault}; the same command resumes where it stopped") from error


def _chunks(file: Any) -> Iterator[bytes]:
    return iter(lambda: file.read(_BUFFER), b"")


def _int64(number: int) -> bytes:
    return number.to_bytes(8, "little", signed=True)
