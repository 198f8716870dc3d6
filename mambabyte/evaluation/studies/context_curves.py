"""Bits per byte by a byte's position in its document, and by the length of the context."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from mambabyte.evaluation.protocols import FIRST_BYTE_NATS, Protocol, ProtocolName, Span, scored_spans
from mambabyte.evaluation.studies import Study, write_picture
from mambabyte.models import ByteLM
from mambabyte.runtime.progress import ProgressCallback

FURTHEST = 64  # times the training length


@dataclass(frozen=True)
class ContextCurves:
    """Two curves, each a list of (bytes, bits per byte), ascending.

    by_position: the bytes at positions [n, 2n) of their documents, counted from 1; each from all bytes before
    it, or for a model whose state grows from those in its window of the training length.
    by_context: all bytes, with the documents cut into windows of n predictions (protocol ``disjoint``).
    """

    training_length: int
    by_position: list[tuple[int, float]]
    by_context: list[tuple[int, float]]


def context_curve_study(
    model: ByteLM,
    documents: Sequence[np.ndarray],
    training_length: int,
    protocol: Protocol,
    title: str,
    plot: Path,
    progress: Callable[[str], ProgressCallback],
) -> Study:
    """Measure the curves and draw them to ``plot``."""
    curves = measure_context_curves(model, documents, training_length, protocol, progress)
    heading = f"{title}, {sum(map(len, documents)):,} bytes"
    fault = write_picture(plot, lambda: plot_context_curves(curves, heading, plot))
    lines = ["n, bits per byte at positions from n to 2n, and in windows of n bytes:"]
    both = dict(curves.by_position), dict(curves.by_context)
    for n in sorted({n for curve in both for n in curve}):
        cells = [f"{curve[n]:10.4f}" if n in curve else " " * 10 for curve in both]
        lines.append(f"  {n:12,}{''.join(cells)}".rstrip())
    if fault:
        return Study(asdict(curves) | {"plot": None, "reason": fault}, lines, fault)
    return Study(asdict(curves) | {"plot": str(plot)}, [*lines, f"plot: {plot}"])


def measure_context_curves(
    model: ByteLM,
    documents: Sequence[np.ndarray],
    training_length: int,
    protocol: Protocol,
    progress: Callable[[str], ProgressCallback] | None = None,
) -> ContextCurves:
    """Both curves, up to 64 times the training length or the longest document.

    A recurrent model reads windows longer than the training length in chunks of that length, so that it needs
    no more memory than in training.

    Args:
        protocol: gives batch size and precision only.
        progress: called with a label, gives the callback for one measurement.
    """

    def measure(
        label: str, name: ProtocolName, pieces: Sequence[np.ndarray], length: int
    ) -> Iterator[list[Span]]:
        how = replace(protocol, name=name, context_length=length, stride=None)
        return scored_spans(model, pieces, how, progress=progress(label) if progress else None)

    total = sum(map(len, documents))
    furthest = min(max(map(len, documents)), FURTHEST * training_length)
    nats, counts = np.zeros(64), np.zeros(64, dtype=np.int64)
    first_bytes = FIRST_BYTE_NATS * len(documents)
    nats[0], counts[0] = first_bytes, len(documents)
    name: ProtocolName = "stateful" if model.recurrent else "disjoint"
    for batch in measure("by position", name, documents, training_length):
        for span in batch:
            octave = np.log2(np.arange(span.start + 1, span.start + 1 + len(span.nats))).astype(np.int64)
            nats += np.bincount(octave, span.nats, 64)
            counts += np.bincount(octave, minlength=64)
    reached = [octave for octave in range(64) if counts[octave] and 2**octave <= furthest]
    by_position = [(2**i, float(nats[i] / counts[i] / math.log(2))) for i in reached]

    by_context = []
    for context in contexts(training_length, furthest if model.recurrent else training_length):
        # pieces that share a byte: `stateful` on them is `disjoint` on the documents, in constant memory
        pieces = [
            document[start : start + context + 1]
            for document in documents
            for start in range(0, max(1, len(document) - 1), context)
        ]
        spans = measure(f"context {context:,}", name, pieces, min(context, training_length))
        found = first_bytes + sum(float(span.nats.sum()) for batch in spans for span in batch)
        by_context.append((context, found / total / math.log(2)))
    return ContextCurves(training_length, by_position, by_context)


def contexts(training_length: int, furthest: int) -> list[int]:
    """Powers of two times the training length, from a sixteenth of it to ``furthest``."""
    lengths = {int(training_length * 2.0**power) for power in range(-4, FURTHEST.bit_length())}
    return sorted(length for length in lengths if 1 <= length <= max(furthest, 1))


def plot_context_curves(curves: ContextCurves, title: str, path: Path) -> None:
    """Draw both curves over a logarithmic axis, with the training length marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curves.by_position, strict=True), "o-", label="bytes at this position of the document")
    if curves.by_context:
        axes.plot(*zip(*curves.by_context, strict=True), "s-", label="all bytes, windows of this length")
    axes.axvline(curves.training_length, color="grey", linestyle="--", label="training length")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="bytes", ylabel="bits per byte", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
