"""Bits per byte against how far into a document a byte stands, and against how long the context is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mambabyte.evaluation.bits_per_byte import FIRST_BYTE_NATS, scored_spans
from mambabyte.models import ByteLM

FURTHEST = 64  # times the training length
Progress = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class Lengths:
    """The two curves: lists of (bytes, bits per byte), ascending.

    by_position: bytes at positions [n, 2n) of their documents, positions counted from 1; each from all bytes
    before it, or for a model whose state grows from those in its window of the training length.
    by_context: all bytes, the documents cut into windows of n predictions (protocol disjoint).
    """

    training_length: int
    by_position: list[tuple[int, float]]
    by_context: list[tuple[int, float]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_lengths(
    model: ByteLM,
    documents: Sequence[np.ndarray],
    training_length: int,
    batch_size: int,
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Lengths:
    """Both curves on these documents, up to 64 times the training length or the longest document.

    A recurrent model reads a window longer than the training length in chunks of that length, so memory
    stays what it was in training.
    """
    longest = max(map(len, documents))
    furthest = min(longest, FURTHEST * training_length)
    show = progress or (lambda label: lambda done, total: None)
    protocol = "stateful" if model.recurrent else "disjoint"
    spans = scored_spans(
        model, documents, protocol, training_length, batch_size, precision, progress=show("by position")
    )
    nats, counts = np.zeros(64), np.zeros(64, dtype=np.int64)
    nats[0], counts[0] = FIRST_BYTE_NATS * len(documents), len(documents)
    for batch in spans:
        for span in batch:
            octave = np.log2(np.arange(span.start + 1, span.start + 1 + len(span.nats))).astype(np.int64)
            nats += np.bincount(octave, span.nats, 64)
            counts += np.bincount(octave, minlength=64)
    reached = [octave for octave in range(64) if counts[octave] and 2**octave <= furthest]
    by_position = [(2**i, float(nats[i] / counts[i] / math.log(2))) for i in reached]

    total = sum(map(len, documents))
    by_context = []
    for context in contexts(training_length, furthest if model.recurrent else training_length):
        # windows that share a byte: stateful on these pieces is disjoint on the documents, in constant memory
        pieces = [
            document[start : start + context + 1]
            for document in documents
            for start in range(0, max(1, len(document) - 1), context)
        ]
        chunk = min(context, training_length)
        label = f"context {context:,}"
        spans = scored_spans(model, pieces, protocol, chunk, batch_size, precision, progress=show(label))
        found = sum(float(span.nats.sum()) for batch in spans for span in batch)
        found += FIRST_BYTE_NATS * len(documents)
        by_context.append((context, found / total / math.log(2)))
    return Lengths(training_length, by_position, by_context)


def contexts(training_length: int, furthest: int) -> list[int]:
    """Powers of two times the training length, from a sixteenth of it to ``furthest``."""
    factors = [2.0**power for power in range(-4, FURTHEST.bit_length())]
    lengths = {int(training_length * factor) for factor in factors}
    return sorted(length for length in lengths if 1 <= length <= max(furthest, 1))


def plot_lengths(lengths: Lengths, title: str, path: Path) -> None:
    """Draw both curves over a logarithmic axis, the training length marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*zip(*lengths.by_position, strict=True), "o-", label="bytes at this position of the document")
    if lengths.by_context:
        axes.plot(*zip(*lengths.by_context, strict=True), "s-", label="all bytes, windows of this length")
    axes.axvline(lengths.training_length, color="grey", linestyle="--", label="training length")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="bytes", ylabel="bits per byte", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
