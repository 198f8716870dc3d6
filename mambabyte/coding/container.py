"""The compressed file: a header, then frames with checksums of the compressed and the original bytes.

    magic, version, model (16 bytes), content (16 bytes), window, lanes, threads, arithmetic, lengths, CRC-32
    frame: number of words, CRC-32 of the words, CRC-32 of the original bytes; the words

Numbers are little-endian, lengths are base-128 varints. ``model`` and ``content`` are the first bytes of the
SHA-256 of the weights and of the original bytes.
"""

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from mambabyte.errors import UserError

MAGIC = b"\x8bMBC"
VERSION = 1
FRAME_BYTES = 1 << 20  # at least this many original bytes, which the coder holds in memory
_DIGEST_BYTES = 16
_FIXED = struct.Struct(f"<{_DIGEST_BYTES}s{_DIGEST_BYTES}sIHHB")  # window, lanes, threads, length of the name
_FRAME = struct.Struct("<III")
FRAME_OVERHEAD = _FRAME.size
MAX_LANES = 2**16 - 1
MAX_THREADS = 1024  # far more than are useful, and OpenMP crashes when it cannot start them


@dataclass(frozen=True)
class Header:
    """Everything that the decoder needs to know or to check.

    window: the context is reset after this many bytes of a segment; None: never.
    arithmetic: see :func:`mambabyte.coding.coder.arithmetic`. lengths: of the segments, in order.
    """

    model: bytes
    content: bytes
    window: int | None
    lanes: int
    threads: int
    arithmetic: str
    lengths: tuple[int, ...]

    def to_bytes(self) -> bytes:
        name = self.arithmetic.encode()
        fixed = _FIXED.pack(self.model, self.content, self.window or 0, self.lanes, self.threads, len(name))
        body = bytes([VERSION]) + fixed + name + _varint(len(self.lengths))
        body += b"".join(map(_varint, self.lengths))
        return MAGIC + body + struct.pack("<I", zlib.crc32(body))


class DamagedFile(UserError):
    """Not a complete file of this format."""


def read_header(stream: BinaryIO) -> Header:
    """Read the header.

    Raises:
        UserError: another kind of file, another version, or a damaged header.
    """
    if stream.read(len(MAGIC)) != MAGIC:
        raise DamagedFile("this is not a file that `mambabyte compress` wrote")
    reader = _Reader(stream)
    version = reader.take(1)[0]
    if version != VERSION:
        ours = f"this version of mambabyte reads format {VERSION}"
        raise DamagedFile(f"this file is of format {version}, but {ours}")
    model, content, window, lanes, threads, name_length = _FIXED.unpack(reader.take(_FIXED.size))
    name = reader.take(name_length)
    lengths = tuple(reader.varint() for _ in range(reader.varint()))
    checksum = reader.checksum
    if struct.unpack("<I", reader.take(4))[0] != checksum:
        raise DamagedFile("the file is damaged: its header does not agree with its checksum")
    if not (lanes and 1 <= threads <= MAX_THREADS):
        raise DamagedFile(f"the file is damaged: its header gives {lanes} lanes and {threads} threads")
    if sum(lengths) > _most_bytes(stream, lanes):
        raise DamagedFile("the file is cut short: its header gives more bytes than it can hold")
    return Header(model, content, window or None, lanes, threads, name.decode(errors="replace"), lengths)


def _most_bytes(stream: BinaryIO, lanes: int) -> int:
    """The original bytes that the rest of the stream can hold at most, whatever the model."""
    here = stream.tell()
    frames = (stream.seek(0, os.SEEK_END) - here) // FRAME_OVERHEAD
    stream.seek(here)
    return frames * (FRAME_BYTES + lanes)


def digest(sha256: str | bytes) -> bytes:
    """The part of a SHA-256 (hex or raw) that a header holds."""
    return (bytes.fromhex(sha256) if isinstance(sha256, str) else sha256)[:_DIGEST_BYTES]


def write_frame(stream: BinaryIO, words: np.ndarray, plain_checksum: int) -> int:
    """Write the words (n,) uint32; return the number of bytes written."""
    data = words.astype("<u4").tobytes()
    stream.write(_FRAME.pack(len(words), zlib.crc32(data), plain_checksum))
    stream.write(data)
    return FRAME_OVERHEAD + len(data)


def read_frame(stream: BinaryIO) -> tuple[np.ndarray, int]:
    """Read the words (n,) uint32 and the checksum of the original bytes.

    Raises:
        UserError: the frame is cut short or damaged.
    """
    reader = _Reader(stream)
    count, checksum, plain_checksum = _FRAME.unpack(reader.take(_FRAME.size))
    if count > FRAME_BYTES:  # a word per byte, which no model needs: the count itself is damaged
        raise DamagedFile("the file is damaged: a frame gives an impossible size")
    data = reader.take(4 * count)
    if zlib.crc32(data) != checksum:
        raise DamagedFile("the file is damaged: a frame does not agree with its checksum")
    return np.frombuffer(data, "<u4").astype(np.uint32), plain_checksum


@dataclass
class _Reader:
    stream: BinaryIO
    checksum: int = 0

    def take(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) != count:
            raise DamagedFile("the file is cut short")
        self.checksum = zlib.crc32(data, self.checksum)
        return data

    def varint(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise DamagedFile("the file is damaged: its header gives an impossible length")


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
