"""Bytes to text while they arrive."""

import codecs
from collections.abc import Iterable, Iterator


def decode_stream(stream: Iterable[int]) -> Iterator[str]:
    """Yield text as soon as its UTF-8 is complete; bytes that are no UTF-8 become U+FFFD, also at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for byte in stream:
        if text := decoder.decode(bytes([byte])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
