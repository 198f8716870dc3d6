"""Writes documents to the files of a prepared corpus so that an interrupted preparation can go on."""

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

FILES = ("bytes.bin", "offsets.bin", "names.bin", "name_offsets.bin")
_BUFFER = 1 << 20
_JOURNAL_SECONDS = 10.0


class CorpusWriter:
    """The files of a corpus in the making, and a journal of the documents that are whole in them.

    A folder with a valid journal is taken up where the journal stands: files are cut to the recorded size
    and must have the recorded sha256. Any other content of the folder is thrown away.

    taken: documents of the source that were dealt with, the empty ones included.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken = 0
        self.num_documents = 0
        self._journal_due = time.monotonic() + _JOURNAL_SECONDS
        self._journaled = False
        self._at_a_border = True  # no document is half written
        with explaining_write_errors(folder.parent):
            if not self._take_up():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                self._files = {name: _HashedFile(folder / name) for name in FILES}
                for name in ("offsets.bin", "name_offsets.bin"):
                    self._files[name].append(_int64(0))

    @property
    def num_bytes(self) -> int:
        return self._files["bytes.bin"].size

    def add(self, document: Document, max_bytes: int | None = None) -> None:
        """Append a document, or as much of it as max_bytes of the corpus allow; leave out an empty one."""
        self._at_a_border = False
        data, names = self._files["bytes.bin"], self._files["names.bin"]
        before = data.size
        for chunk in document.chunks():
            if max_bytes is not None:
                chunk = chunk[: max_bytes - data.size]
            if not chunk:
                break
            data.append(chunk)
        self.taken += 1
        if data.size > before:
            self.num_documents += 1
            self._files["offsets.bin"].append(_int64(data.size))
            names.append(document.name.encode("utf-8", "surrogateescape"))
            self._files["name_offsets.bin"].append(_int64(names.size))
        self._at_a_border = True
        if time.monotonic() > self._journal_due:
            self.journal()

    def journal(self) -> None:
        """Put everything on disk and record how far it goes."""
        for file in self._files.values():
            file.sync()
        record = {
            "taken": self.taken,
            "num_documents": self.num_documents,
            "files": {name: [file.size, file.sha256] for name, file in self._files.items()},
        }
        journal = self.folder / "journal.json"
        with explaining_write_errors(self.folder.parent), atomic_write(journal) as stream:
            stream.write(json.dumps(record).encode())
        self._journaled = True
        self._journal_due = time.monotonic() + _JOURNAL_SECONDS

    def finish(self, description: dict[str, Any]) -> None:
        """Write meta.json, which makes the folder a corpus."""
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
                stream.write((json.dumps(meta, indent=1) + "\n").encode())
            (self.folder / "journal.json").unlink(missing_ok=True)

    def abandon(self) -> None:
        """Keep what a later preparation can go on from, and leave nothing if there is no such thing."""
        whole = self._at_a_border and all(file.whole for file in self._files.values())
        if self.num_documents and whole:
            with suppress(UserError):  # on a full disk: then the last journal stands, if there is one
                self.journal()
        if not self._journaled:
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _fingerprint(self) -> str:
        digest = self._files["bytes.bin"].digest.copy()
        with (self.folder / "offsets.bin").open("rb") as file:
            for chunk in _pieces(file):
                digest.update(chunk)
        return digest.hexdigest()

    def _take_up(self) -> bool:
        try:
            record = json.loads((self.folder / "journal.json").read_text("utf-8"))
            files = {name: _HashedFile(self.folder / name, *record["files"][name]) for name in FILES}
            self.taken, self.num_documents = record["taken"], record["num_documents"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self._files = files
        self._journaled = True
        return True


class _HashedFile:
    """A file that is appended to, with the sha256 of its whole content. Raises ValueError where `size` bytes
    are to be taken up and do not have the given sha256."""

    def __init__(self, path: Path, size: int = 0, sha256: str | None = None) -> None:
        self.digest = hashlib.sha256()
        self.size = size
        self.whole = True  # nothing was lost between append and the file
        self._folder = path.parent.parent
        self._waiting: list[bytes] = []
        self._num_waiting = 0
        self._file = path.open("r+b" if size else "wb", buffering=0)
        try:
            if size:
                self._file.truncate(min(size, os.fstat(self._file.fileno()).st_size))
                for chunk in _pieces(self._file):
                    self.digest.update(chunk)
                if self.digest.hexdigest() != sha256:
                    raise ValueError(f"{path} is not what its journal says")
        except BaseException:
            self._file.close()
            raise

    @property
    def sha256(self) -> str:
        return self.digest.hexdigest()

    def append(self, data: bytes) -> None:
        self._waiting.append(data)
        self._num_waiting += len(data)
        self.size += len(data)
        if self._num_waiting >= _BUFFER:
            self._write()

    def sync(self) -> None:
        self._write()
        with explaining_write_errors(self._folder):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()

    def _write(self) -> None:
        data = b"".join(self._waiting) if len(self._waiting) != 1 else self._waiting[0]
        self.whole = False
        self._waiting, self._num_waiting = [], 0
        self.digest.update(data)
        rest = memoryview(data)
        with explaining_write_errors(self._folder):
            while rest:
                rest = rest[self._file.write(rest) :]
        self.whole = True


@contextmanager
def explaining_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write prepared data in {folder}: {reason}; mend that and repeat the command, which goes "
            "on where it stopped, or set data.folder to another place"
        ) from error


def _pieces(file: Any) -> Iterator[bytes]:
    return iter(lambda: file.read(_BUFFER), b"")


def _int64(number: int) -> bytes:
    return number.to_bytes(8, "little", signed=True)
