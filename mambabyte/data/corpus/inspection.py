"""What a corpus is made of: document lengths, byte values, its share of UTF-8, how well it compresses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mambabyte.data.corpus.corpus import ByteCorpus

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Inspection:
    """Counts over a whole corpus.

    Attributes:
        bytes_per_document: "min", "mean", "max" and the quantiles "1%", "50%", ...
        histogram: how often each of the 256 byte values occurs.
        valid_documents: documents that are entirely UTF-8.
        valid_bytes: bytes in valid UTF-8 sequences.
        zstd_bytes: size of all documents as one zstd frame of level ZSTD_LEVEL.
    """

    bytes: int
    documents: int
    bytes_per_document: dict[str, float]
    histogram: list[int]
    valid_documents: int
    valid_bytes: int
    zstd_bytes: int

    @property
    def ascii_share(self) -> float:
        return sum(self.histogram[:128]) / self.bytes

    @property
    def zstd_bits_per_byte(self) -> float:
        return 8 * self.zstd_bytes / self.bytes

    @property
    def entropy(self) -> float:
        """Bits per byte of a model that knows only how often each byte occurs."""
        shares = [count / self.bytes for count in self.histogram if count]
        return -sum(share * math.log2(share) for share in shares)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "ascii_share": self.ascii_share,
            "entropy_bits_per_byte": self.entropy,
            "zstd_level": ZSTD_LEVEL,
            "zstd_bits_per_byte": self.zstd_bits_per_byte,
        }


def inspect_corpus(
    corpus: ByteCorpus, progress: Callable[[int, int], None] | None = None, chunk_bytes: int = 1 << 20
) -> Inspection:
    """Read a corpus once, in chunks; memory holds one chunk and 16 bytes for each document.

    Args:
        progress: called with (bytes, documents) so far.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
    histogram = np.zeros(256, dtype=np.int64)
    zstd_bytes = valid_documents = valid_bytes = 0
    for first, last in _groups(corpus.offsets, chunk_bytes):
        invalid, valid = 0, last - first  # bytes, and documents
        begin, end = int(corpus.offsets[first]), int(corpus.offsets[last])
        for start in range(begin, end, chunk_bytes):
            chunk = corpus.bytes[start : min(start + chunk_bytes, end)]
            histogram += np.bincount(chunk, minlength=256)
            zstd_bytes += len(compressor.compress(chunk.tobytes()))
        if end - begin > chunk_bytes or not _all_valid(corpus, first, last):
            found = [_invalid_bytes(corpus.document(number), chunk_bytes) for number in range(first, last)]
            invalid, valid = sum(found), found.count(0)
        valid_bytes += end - begin - invalid
        valid_documents += valid
        if progress is not None:
            progress(end, last)
    zstd_bytes += len(compressor.flush())
    lengths = np.diff(corpus.offsets)
    spread = dict(zip((f"{q:.0%}" for q in QUANTILES), np.quantile(lengths, QUANTILES).tolist(), strict=True))
    return Inspection(
        bytes=corpus.num_bytes,
        documents=corpus.num_documents,
        bytes_per_document={
            "min": int(lengths.min()),
            **spread,
            "max": int(lengths.max()),
            "mean": float(lengths.mean()),
        },
        histogram=histogram.tolist(),
        valid_documents=valid_documents,
        valid_bytes=valid_bytes,
        zstd_bytes=zstd_bytes,
    )


def _groups(offsets: np.ndarray, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of documents that make up at most a chunk, or of one longer document."""
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + chunk_bytes, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _all_valid(corpus: ByteCorpus, first: int, last: int) -> bool:
    """Whether each of the documents [first, last) is UTF-8, found by decoding them as one.

    That differs only where a document begins with a continuation byte.
    """
    begins = corpus.bytes[corpus.offsets[first:last]]
    if ((begins & 0xC0) == 0x80).any():
        return False
    try:
        corpus.bytes[corpus.offsets[first] : corpus.offsets[last]].tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def _invalid_bytes(document: np.ndarray, chunk_bytes: int) -> int:
    """How many bytes of a document are in no valid UTF-8 sequence."""
    invalid, rest = 0, b""
    for start in range(0, len(document), chunk_bytes):
        chunk = rest + document[start : start + chunk_bytes].tobytes()
        final = start + chunk_bytes >= len(document)
        rest = b""
        if not final:
            # A sequence of up to four bytes may continue in the next chunk.
            cut = next((n for n in (1, 2, 3) if len(chunk) > n and chunk[-n] >= 0xC0), 0)
            chunk, rest = chunk[: len(chunk) - cut], chunk[len(chunk) - cut :]
        try:
            chunk.decode()
        except UnicodeDecodeError:
            codes = np.frombuffer(
                chunk.decode("utf-8", "surrogateescape").encode("utf-32-le", "surrogatepass"), dtype="<u4"
            )
            invalid += int(((codes >= 0xDC80) & (codes <= 0xDCFF)).sum())
    return invalid


def plot_inspection(inspection: Inspection, lengths: np.ndarray, title: str, path: Path) -> None:
    """Plot the byte histogram and the lengths of the documents, (documents,) in bytes, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    values, documents = figure.subplots(2, 1)
    shares = np.array(inspection.histogram) / inspection.bytes
    values.bar(np.arange(256), np.where(shares > 0, shares, np.nan), width=1.0, color="tab:blue")
    values.set_yscale("log")
    values.set_xlim(-0.5, 255.5)
    values.set_xticks(
        [0, 10, 32, 48, 65, 97, 128, 192, 255],
        ["0x00", "\\n", "space", "0", "A", "a", "0x80", "0xC0", "0xFF"],
    )
    values.axvspan(127.5, 255.5, color="gray", alpha=0.1, label="not ASCII")
    values.set(ylabel="share of all bytes", title=title)
    values.legend(loc="upper right")
    values.grid(alpha=0.2)
    low, high = int(lengths.min()), int(lengths.max())
    edges = np.geomspace(max(low, 1), max(high, low + 1), 61)
    documents.hist(lengths, bins=edges, color="tab:orange")
    documents.set_xscale("log")
    median, mean = inspection.bytes_per_document["50%"], inspection.bytes_per_document["mean"]
    documents.axvline(median, color="black", linestyle="--", linewidth=1, label=f"median {median:,.0f}")
    documents.axvline(mean, color="black", linestyle=":", linewidth=1, label=f"mean {mean:,.0f}")
    documents.set(xlabel="bytes in a document", ylabel="documents")
    documents.legend(loc="upper right")
    documents.grid(alpha=0.2)
    figure.savefig(path, dpi=120)
