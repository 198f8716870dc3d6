"""UTF-8 as bytes arrive: text as soon as it is complete, and which byte may come next (RFC 3629)."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def decode_stream(stream: Iterable[int]) -> Iterator[str]:
    """Yield text as soon as its UTF-8 is complete; invalid bytes, also at the end, become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for byte in stream:
        if text := decoder.decode(bytes([byte])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


class Utf8Position(NamedTuple):
    """Where in a character a text ends: the least and the largest byte that goes on with it, and how many
    follow that one. Between characters `most` is 0."""

    least: int = 0
    most: int = 0
    then: int = 0

    @staticmethod
    def after(text: bytes) -> Utf8Position:
        """After this text; invalid bytes in it are passed over."""
        position = Utf8Position()
        for byte in text[-3:]:
            position = position.after_byte(byte)
        return position

    def after_byte(self, byte: int) -> Utf8Position:
        """After one more byte; one that is invalid here begins anew."""
        if self.least <= byte <= self.most:
            return Utf8Position(0x80, 0xBF, self.then - 1) if self.then else Utf8Position()
        return _BEGUN.get(byte, Utf8Position())

    def allowed(self, left: int | None) -> NDArray[np.bool_]:
        """Which bytes (256,) may come next.

        Args:
            left: the bytes that are still to come, in which the last character must end; None for any number.
        """
        return _allowed(self, 4 if left is None else min(left, 4))


def _begun() -> dict[int, Utf8Position]:
    """The position after the first byte of each character of several bytes."""
    begun = {byte: Utf8Position(0x80, 0xBF, 0) for byte in range(0xC2, 0xE0)}
    begun |= {byte: Utf8Position(0x80, 0xBF, 1) for byte in range(0xE0, 0xF0)}
    begun |= {byte: Utf8Position(0x80, 0xBF, 2) for byte in range(0xF0, 0xF5)}
    # No longer forms of shorter characters, no surrogates, nothing beyond U+10FFFF.
    begun[0xE0] = Utf8Position(0xA0, 0xBF, 1)
    begun[0xED] = Utf8Position(0x80, 0x9F, 1)
    begun[0xF0] = Utf8Position(0x90, 0xBF, 2)
    begun[0xF4] = Utf8Position(0x80, 0x8F, 2)
    return begun


_BEGUN = _begun()


@lru_cache
def _allowed(position: Utf8Position, left: int) -> NDArray[np.bool_]:
    allowed = np.zeros(256, dtype=bool)
    if position.most:
        allowed[position.least : position.most + 1] = True
    else:
        allowed[:0x80] = True
        for byte, begun in _BEGUN.items():
            allowed[byte] = begun.then + 2 <= left
    allowed.flags.writeable = False
    return allowed
