from __future__ import annotations

import math

import numpy as np
import pytest
import zstandard

from mambabyte.data import ByteCorpus
from mambabyte.data.corpus.inspection import ZSTD_LEVEL, inspect_corpus


def corpus_of(documents):
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    return ByteCorpus(np.frombuffer(b"".join(documents), dtype=np.uint8), offsets, [])


def test_counts_of_a_small_corpus():
    documents = [b"abcab", b"a", "naïve".encode(), b"\xff\xfeab"]
    found = inspect_corpus(corpus_of(documents))
    assert (found.bytes, found.documents) == (16, 4)
    lengths = found.bytes_per_document
    assert (lengths["min"], lengths["max"], lengths["mean"], lengths["50%"]) == (1, 6, 4.0, 4.5)
    text = b"".join(documents)
    assert found.histogram == [text.count(bytes([byte])) for byte in range(256)]
    assert found.ascii_share == 12 / 16
    assert (found.valid_documents, found.valid_bytes) == (3, 14)
    assert found.entropy == pytest.approx(
        -sum(n / 16 * math.log2(n / 16) for n in found.histogram if n), rel=1e-12
    )
    assert found.to_dict()["zstd_bits_per_byte"] == 8 * found.zstd_bytes / 16


@pytest.mark.parametrize("chunk_bytes", [5, 7, 64, 1 << 20])
def test_chunks_of_any_size_find_the_same(chunk_bytes, make_documents):
    words = ["naïve ", "日本語 ", "plain ", "🙂", "ß"]
    documents = ["".join(words[i % 5] for i in range(n, 3 * n)).encode() for n in range(1, 40)]
    documents += make_documents([200, 3, 50], seed=1)  # hardly any of it is UTF-8
    documents += [b"\xe6\x97", b"\xa5\xe6", b"\xac", b"x\x80" * 40, b"\xf0\x9f\x99", "é".encode()]
    # what the library finds in each document as a whole
    invalid = [
        sum(0xDC80 <= ord(char) <= 0xDCFF for char in document.decode("utf-8", "surrogateescape"))
        for document in documents
    ]
    seen = []
    found = inspect_corpus(corpus_of(documents), lambda *done: seen.append(done), chunk_bytes)
    assert found.valid_documents == invalid.count(0)
    assert found.valid_bytes == found.bytes - sum(invalid)
    text = b"".join(documents)
    assert found.histogram == np.bincount(np.frombuffer(text, np.uint8), minlength=256).tolist()
    assert seen[-1] == (len(text), len(documents))


def test_compressed_size_is_zstds():
    text = b"the quick brown fox jumps over the lazy dog. " * 5000
    found = inspect_corpus(corpus_of([text, text[:77]]))
    # a frame of unknown size is a few bytes longer than one of known size
    expected = len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(text + text[:77]))
    assert abs(found.zstd_bytes - expected) < 20
