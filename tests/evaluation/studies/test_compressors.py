"""The compressors' figures against one-shot compression of the concatenated bytes."""

import bz2
import gzip
import lzma

import brotli
import numpy as np
import pytest
import zstandard

from mambabyte.evaluation import compressor_bits_per_byte


def test_sizes_are_those_of_the_concatenated_documents() -> None:
    texts = [b"to be or not to be " * 50, b"that is the question " * 40, b"x"]
    whole = b"".join(texts)
    figures = compressor_bits_per_byte(np.frombuffer(text, np.uint8) for text in texts)
    sizes = {
        "gzip -9": len(gzip.compress(whole, 9)),
        "bzip2 -9": len(bz2.compress(whole, 9)),
        "xz -9e": len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)),
        "zstd -19": len(zstandard.ZstdCompressor(level=19).compress(whole)),
        "brotli -q 11": len(brotli.compress(whole, quality=11, lgwin=24)),
    }
    assert figures.keys() == sizes.keys()
    for name, size in sizes.items():
        # a stream that is fed in pieces may frame a few bytes differently
        assert figures[name] * len(whole) / 8 == pytest.approx(size, abs=8), name
