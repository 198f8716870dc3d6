"""Local files opened for reading: decompressed by their suffix, their faults explained in a sentence."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mambabyte.data.sources.documents import Document
from mambabyte.errors import UserError
from mambabyte.runtime.progress import Progress

_CHUNK = 1 << 20
_COMPRESSED_CHUNK = 1 << 14  # bytes; each can be 30,000 decompressed ones
_HEAD = 512  # bytes that tell a format
_POINTER = b"version https://git-lfs.github.com/spec/"
_FORMATS = {
    rb"\x1f\x8b\x08": "gzip-compressed; let its name end in .gz",
    rb"BZh[1-9]1AY&SY": "bzip2-compressed; let its name end in .bz2",
    rb"\xfd7zXZ\0": "xz-compressed; let its name end in .xz",
    rb"\x28\xb5\x2f\xfd": "zstd-compressed; let its name end in .zst",
    rb"\x04\x22\x4d\x18": "lz4-compressed; decompress it",
    rb"\x1f[\x9d\xa0]": "compressed by compress; decompress it",
    rb"LZIP\x01": "lzip-compressed; decompress it",
    rb"PK(\x03\x04|\x05\x06)": "a zip archive; unpack it",
    rb".{257}ustar": "a tar archive; unpack it",
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    rb"Rar!\x1a\x07": "a rar archive; unpack it",
    rb"PAR1\x15": "a parquet file; let its name end in .parquet",
    rb"ARROW1\0\0": "an Arrow file; write its table as parquet",
}


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
        with explaining_read_errors(self.path), open_file(self.path) as file:
            position = 0
            while position < self.start:  # most formats have no other way there
                skipped = len(file.read(min(_CHUNK, self.start - position)))
                position = position + skipped if skipped else self.start
            while self.stop is None or position < self.stop:
                size = _CHUNK if self.stop is None else min(_CHUNK, self.stop - position)
                chunk = file.read(size)
                if not chunk:
                    break
                position += len(chunk)
                yield chunk


class _Decompressed(io.RawIOBase):
    """The frames of a compressed file, one after the other.

    The libraries' own readers take a zstd frame that is cut off, and a bzip2 or xz stream after a first one
    that is damaged, for the end of the file.

    Args:
        decompressor: makes an object that decompresses one frame.
    """

    def __init__(self, file: IO[bytes], decompressor: Callable[[], Any]) -> None:
        self._file, self._decompressor = file, decompressor
        self._pieces = self._decompressed()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

    def _decompressed(self) -> Iterator[bytes]:
        frame = None
        while chunk := self._file.read(_COMPRESSED_CHUNK):
            while chunk:
                frame = frame or self._decompressor()
                yield frame.decompress(chunk)
                chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        if frame is not None:
            raise EOFError("it is cut off; get it again")


def _zstd() -> Any:
    from zstandard import ZstdDecompressor

    return ZstdDecompressor().decompressobj()


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    ".zst": _zstd,
}
_COMPRESSED = (".gz", *_DECOMPRESSORS)


def without_compression(name: str) -> str:
    """A file's name in lower case, without the suffix of its compression."""
    stem, suffix = os.path.splitext(name.lower())
    return stem if suffix in _COMPRESSED else stem + suffix


def open_file(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed if its name says that it is compressed."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    file = path.open("rb")
    if suffix not in _DECOMPRESSORS:
        return file
    return io.BufferedReader(_Decompressed(file, _DECOMPRESSORS[suffix]), _CHUNK)


def refuse_unreadable(path: Path) -> None:
    """Raise UserError if a file, decompressed, holds no text of its own: an archive, a compressed or parquet
    file under another name, or what git-lfs leaves in the place of a file."""
    with path.open("rb") as file:
        refuse_pointer(path, file.read(_HEAD))
    with open_file(path) as file:
        head = file.read(_HEAD)
    for pattern, what in _FORMATS.items():
        if re.match(pattern, head, re.DOTALL):
            raise UserError(f"{path} is {what}, or leave it out of data.path")


def refuse_pointer(path: str | Path, head: bytes) -> None:
    """Raise UserError if a file that begins with ``head`` is what git-lfs leaves in the place of a file."""
    if head.startswith(_POINTER):
        raise UserError(f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder")


@contextmanager
def explaining_read_errors(name: str | Path) -> Iterator[None]:
    """Turn the errors of files and their formats into a UserError."""
    import pyarrow
    import zstandard

    formats = (zlib.error, lzma.LZMAError, zstandard.ZstdError, pyarrow.ArrowException)
    try:
        yield
    except (OSError, EOFError, *formats) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot read {name}: {reason}") from error


_hashes: dict[tuple[Any, ...], str] = {}


def content_hashes(paths: Sequence[str | Path]) -> list[str]:
    """The sha256, in hex, of each file's bytes as they lie on the disk.

    A file is not read again by this process if nothing at all has changed about it, unless it was so new that
    the file system's clock might not tell a change.
    """
    with explaining_read_errors("the data"):
        total = sum(os.stat(path).st_size for path in paths)
    progress = Progress("checking the data's content", total)

    def hashed(path: str | Path) -> str:
        with explaining_read_errors(path), open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            known = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if known in _hashes:
                return _hashes[known]
            is_old = time.time() - max(status.st_mtime, status.st_ctime) > 2.0
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                progress.update(len(chunk))
            if is_old:
                _hashes[known] = digest.hexdigest()
            return digest.hexdigest()

    try:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(hashed, paths))
    finally:
        progress.close()
