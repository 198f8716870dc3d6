"""General-purpose compressors at their strongest usual levels, as baselines."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mambabyte.evaluation.studies import Study


def compressor_study(documents: Sequence[np.ndarray], bits_per_byte: float) -> Study:
    """The compressors on the documents, ranked with the model's own ``bits_per_byte``."""
    found = compressor_bits_per_byte(documents)
    rows = sorted({"this model": bits_per_byte, **found}.items(), key=lambda row: row[1])
    lines = [f"  {name:16}{bits:8.4f}" for name, bits in rows]
    return Study(found, ["bits per byte on the same bytes:", *lines])


def compressor_bits_per_byte(documents: Iterable[np.ndarray]) -> dict[str, float]:
    """Bits per byte of ``gzip -9``, ``bzip2 -9``, ``xz -9e``, ``zstd -19`` and ``brotli -q 11 -w 24``.

    The documents are concatenated. Sizes include each format's header and checksum.
    """
    import brotli
    import zstandard

    documents = list(documents)
    total = sum(map(len, documents))
    gzip, bzip2 = zlib.compressobj(9, wbits=31), bz2.BZ2Compressor(9)
    xz = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    zstd = zstandard.ZstdCompressor(level=19).compressobj(size=total)
    brotli_11 = brotli.Compressor(quality=11, lgwin=24)
    streams: dict[str, tuple[Callable[[bytes], bytes], Callable[[], bytes]]] = {
        "gzip -9": (gzip.compress, gzip.flush),
        "bzip2 -9": (bzip2.compress, bzip2.flush),
        "xz -9e": (xz.compress, xz.flush),
        "zstd -19": (zstd.compress, zstd.flush),
        "brotli -q 11": (brotli_11.process, brotli_11.finish),
    }
    return {
        name: 8 * (sum(len(add(bytes(document))) for document in documents) + len(finish())) / total
        for name, (add, finish) in streams.items()
    }
