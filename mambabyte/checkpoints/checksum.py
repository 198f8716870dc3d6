"""A checkpoint's own checksum: the SHA-256 of what PyTorch wrote, as the comment of its zip file.

``unzip -z`` shows it. PyTorch's own CRC-32s would not do: they omit the bytes between records, and
``torch.load`` ignores them.
"""

import hashlib
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

_END_BYTES = 22  # of a zip file's last record; the last two hold the length of the comment that follows
_END_SIGNATURE = b"PK\x05\x06"
_FIRST_SIGNATURE = b"PK\x03\x04"
_COMMENT = re.compile(rb"sha256=([0-9a-f]{64})")
_COMMENT_BYTES = 71
_CHUNK = 1 << 22


class ChecksummedWriter:
    """Passes what ``torch.save`` writes on to ``file`` and computes its checksum on the way.

    Attributes:
        fault: the system's error, if a write failed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.fault: OSError | None = None

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as fault:
            self.fault = fault
            raise

    def flush(self) -> None:
        self._file.flush()

    def append_checksum(self) -> None:
        """Add the checksum to the finished zip file, as its comment."""
        comment = b"sha256=" + self._digest.hexdigest().encode()
        self._file.seek(-2, os.SEEK_END)
        self._file.write(struct.pack("<H", len(comment)) + comment)


def is_intact(path: Path) -> bool:
    """Whether a checkpoint matches its checksum. Files without one, from early versions, count as intact."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(len(_FIRST_SIGNATURE))
        file.seek(max(0, size - _END_BYTES - _COMMENT_BYTES))
        tail = file.read()
        comment = _COMMENT.fullmatch(tail[-_COMMENT_BYTES:])
        if not comment:
            without_comment = tail[-_END_BYTES:].startswith(_END_SIGNATURE) and tail.endswith(b"\0\0")
            return without_comment or start != _FIRST_SIGNATURE  # torch.load refuses other files
        if tail[-_COMMENT_BYTES - 2 : -_COMMENT_BYTES] != struct.pack("<H", _COMMENT_BYTES):
            return False
        digest = hashlib.sha256()
        file.seek(0)
        remaining = size - _COMMENT_BYTES - 2
        while remaining > 0 and (chunk := file.read(min(_CHUNK, remaining))):
            digest.update(chunk)
            remaining -= len(chunk)
    digest.update(b"\0\0")  # the comment's length before there was one
    return digest.hexdigest().encode() == comment[1]
