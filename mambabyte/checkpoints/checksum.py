"""A checkpoint carries its own checksum: the SHA-256 of what PyTorch wrote is the comment of its zip file.

One file, one rename: a checkpoint and its checksum cannot get separated, and any program that reads zip files
still reads it (``unzip -z`` shows the comment).
"""

import hashlib
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

_END = 22  # bytes of a zip file's last record without comment; its last two are the comment's length
_END_MARK = b"PK\x05\x06"
_FIRST_MARK = b"PK\x03\x04"
_SEAL = re.compile(rb"sha256=([0-9a-f]{64})")
_SEAL_BYTES = 71
_CHUNK = 1 << 22


class SealedWriter:
    """Takes what ``torch.save`` writes to ``file`` and remembers its checksum; then call :meth:`seal`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Add the comment to the zip file that was written."""
        comment = b"sha256=" + self._digest.hexdigest().encode()
        self._file.seek(-2, os.SEEK_END)
        self._file.write(struct.pack("<H", len(comment)) + comment)


def is_intact(path: Path) -> bool:
    """Whether a checkpoint holds what was written. True, too, for one without a seal: an early version's."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(len(_FIRST_MARK))
        file.seek(max(0, size - _END - _SEAL_BYTES))
        tail = file.read()
        sealed = _SEAL.fullmatch(tail[-_SEAL_BYTES:])
        if not sealed:
            never_sealed = tail[-_END:].startswith(_END_MARK) and tail.endswith(b"\0\0")
            return never_sealed or first != _FIRST_MARK  # what is no zip file at all, its reader will refuse
        if tail[-_SEAL_BYTES - 2 : -_SEAL_BYTES] != struct.pack("<H", _SEAL_BYTES):
            return False
        digest = hashlib.sha256()
        file.seek(0)
        left = size - _SEAL_BYTES - 2
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    digest.update(b"\0\0")  # there was no comment when PyTorch wrote
    return digest.hexdigest().encode() == sealed[1]
