"""A split on disk as one byte file with a document index, memory-mapped; made once, then opened."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mambabyte.data.documents import DocumentSource
from mambabyte.errors import UserError

_FORMAT = 1
_HASH_CHUNK = 1 << 24


class ByteCorpus:
    """Documents end to end in one array.

    bytes: (num_bytes,) uint8; offsets: (num_documents + 1,) int64, document i being
    bytes[offsets[i]:offsets[i + 1]]; names: one per document; meta: what it was made from. `ByteCorpus.open`
    maps a prepared folder without reading it; the constructor takes arrays at hand.
    """

    def __init__(
        self,
        bytes: np.ndarray,
        offsets: np.ndarray,
        names: list[str],
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.bytes = bytes
        self.offsets = offsets
        self.names = names
        self.meta = meta or {}

    @classmethod
    def open(cls, folder: Path) -> ByteCorpus:
        return _MappedCorpus(folder)

    @property
    def num_bytes(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """(length,) uint8 view of one document."""
        return self.bytes[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, over the bytes and then the offsets as little-endian int64."""
        digest = hashlib.sha256()
        for start in range(0, len(self.bytes), _HASH_CHUNK):
            digest.update(np.ascontiguousarray(self.bytes[start : start + _HASH_CHUNK]).data)
        digest.update(np.ascontiguousarray(self.offsets, dtype="<i8").data)
        return digest.hexdigest()


class _MappedCorpus(ByteCorpus):
    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / "meta.json").read_text("utf-8"))
            offsets = np.load(self.folder / "offsets.npy", mmap_mode="r")
            data = np.memmap(self.folder / "bytes.bin", dtype=np.uint8, mode="r")
            fingerprint = meta["fingerprint"]
            whole = len(data) == int(offsets[-1]) and meta["num_documents"] == len(offsets) - 1
        except (OSError, EOFError, ValueError, KeyError, IndexError) as error:
            raise UserError(f"prepared data in {folder} is damaged ({error}); delete that folder") from error
        if not whole:
            raise UserError(f"prepared data in {folder} is damaged (sizes disagree); delete that folder")
        self.bytes, self.offsets, self.meta = data, offsets, meta
        self.fingerprint = fingerprint

    @cached_property
    def names(self) -> list[str]:  # type: ignore[override]
        # Read when asked for: training on millions of rows never needs them.
        return json.loads((self.folder / "names.json").read_text("utf-8"))

    def __reduce__(self) -> tuple[Any, ...]:
        # A data-loading worker maps the folder again instead of receiving a copy of the bytes.
        return _MappedCorpus, (self.folder,)


def prepare(source: DocumentSource, split: str, folder: Path, max_bytes: int | None = None) -> ByteCorpus:
    """Write one split of a source to <folder>/<key>/ and open it; open it at once if it is there already.

    The key is a hash of the source's identity, the split and max_bytes. Documents are streamed: memory holds
    one of them and 8 bytes for each offset. Empty documents are left out. max_bytes cuts the split after so
    many bytes, in the source's order (the last document may be cut short).
    Other processes that want the same folder wait. What is interrupted leaves nothing behind that could be
    taken for a corpus. Raises UserError when the split is empty or the folder cannot be written.
    """
    if max_bytes is not None and max_bytes < 1:
        raise UserError(f"the number of bytes to prepare must be at least 1, not {max_bytes}")
    folder = Path(folder).expanduser()
    description = {"format": _FORMAT, "identity": source.identity(), "split": split, "max_bytes": max_bytes}
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]
    final = folder / key
    if final.is_dir():
        return ByteCorpus.open(final)
    with _explaining_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if final.is_dir():
            return ByteCorpus.open(final)
        partial = folder / f".{key}.part"
        with _explaining_write_errors(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        try:
            _write(source, split, partial, max_bytes, description)
            with _explaining_write_errors(folder):
                os.replace(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return ByteCorpus.open(final)


def _write(
    source: DocumentSource, split: str, folder: Path, max_bytes: int | None, description: dict[str, Any]
) -> None:
    digest = hashlib.sha256()
    offsets = array("q", [0])
    progress = _Progress(split)
    with _explaining_write_errors(folder.parent):
        data_file = (folder / "bytes.bin").open("wb")
        names_file = (folder / "names.json").open("w", encoding="utf-8")
    try:
        for document in source.documents(split):
            data = document.data
            if max_bytes is not None:
                data = data[: max_bytes - offsets[-1]]
            if not data:
                if offsets[-1] == max_bytes:
                    break
                continue
            with _explaining_write_errors(folder.parent):
                data_file.write(data)
                names_file.write(("[" if len(offsets) == 1 else ",\n") + json.dumps(document.name))
            digest.update(data)
            offsets.append(offsets[-1] + len(data))
            progress.show(offsets[-1], len(offsets) - 1)
        if offsets[-1] == 0:
            raise UserError(
                f"the {split} split of this data holds no bytes; give more data, or another share of it with "
                "data.validation_fraction"
            )
        with _explaining_write_errors(folder.parent):
            names_file.write("]\n")
            for file in (data_file, names_file):
                file.flush()
                os.fsync(file.fileno())
    finally:
        progress.close()
        # A full disk makes close() raise too; the error on its way says it already.
        for file in (data_file, names_file):
            with suppress(OSError):
                file.close()
    index = np.frombuffer(offsets, dtype=np.int64)
    digest.update(np.ascontiguousarray(index, dtype="<i8").data)
    meta = {
        **description,
        "num_bytes": int(index[-1]),
        "num_documents": len(index) - 1,
        "fingerprint": digest.hexdigest(),
    }
    with _explaining_write_errors(folder.parent):
        np.save(folder / "offsets.npy", index)
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _explaining_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write prepared data in {folder}: {reason}; set data.folder to another place"
        ) from error


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process prepares at a time in a folder; the system releases the lock of a process that died."""
    with _explaining_write_errors(folder):
        lock = (folder / ".lock").open("w")
    with lock:
        with _explaining_write_errors(folder):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Progress:
    """A line on stderr for preparations longer than two seconds: rewritten on a terminal, else every 10 s."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.start = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.next = self.start + 2
        self.shown = False

    def show(self, num_bytes: int, num_documents: int) -> None:
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + (0.5 if self.terminal else 10)
        self.shown = True
        line = (
            f"preparing {self.split} data: {num_documents:,} documents, {num_bytes / 1e6:,.1f} MB, "
            f"{num_bytes / 1e6 / (now - self.start):,.1f} MB/s"
        )
        print(
            f"\r{line}" if self.terminal else line,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self.shown and self.terminal:
            print(file=sys.stderr)
