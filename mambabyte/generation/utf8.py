"""Bytes to text as they arrive."""

import codecs
from collections.abc import Iterable, Iterator


def decode_stream(stream: Iterable[int]) -> Iterator[str]:
    """Yield text as soon as its UTF-8 is complete; invalid bytes, also at the end, become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for byte in stream:
        if text := decoder.decode(bytes([byte])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
