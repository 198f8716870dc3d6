"""Bits per byte over a corpus, with all that is needed to repeat the figure."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from mambabyte.checkpoints import weights_fingerprint
from mambabyte.data import ByteCorpus
from mambabyte.errors import UserError
from mambabyte.evaluation import protocols
from mambabyte.evaluation.load_balancing import deal, rank_and_count, sum_over_ranks
from mambabyte.evaluation.protocols import Cursor, Span
from mambabyte.evaluation.resume import SavedProgress
from mambabyte.models import ByteLM
from mambabyte.runtime.units import counted

FIRST_BYTE_NATS = math.log(256)  # a document's first byte has nothing before it: 8 bits
PROTOCOLS = ("disjoint", "sliding", "stateful")
_RESAMPLES = 1000


@dataclass(frozen=True)
class DocumentBits:
    """The figure of one document."""

    name: str
    bytes: int
    bits_per_byte: float


@dataclass(frozen=True)
class BitsPerByte:
    """A figure and its circumstances: ``bits_per_byte`` = ``nats`` / ``bytes`` / ln 2.

    interval: the middle 95 % of the figure over bootstrap samples of the documents; None for fewer than two.
    """

    bits_per_byte: float
    nats: float
    bytes: int
    documents: int
    interval: tuple[float, float] | None
    protocol: dict[str, Any]
    data_fingerprint: str
    weights_fingerprint: str
    precision: str
    device: str
    seconds: float
    per_document: list[DocumentBits]

    def to_dict(self, per_document: bool = True) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        if not per_document:
            del values["per_document"]
        return values

    def __str__(self) -> str:
        protocol = self.protocol
        stride = f", stride {protocol['stride']:,}" if "stride" in protocol else ""
        interval = ""
        if self.interval is not None:
            interval = f", 95 % of resampled documents: {self.interval[0]:.4f} to {self.interval[1]:.4f}"
        return (
            f"{self.bits_per_byte:.4f} bits per byte ({protocol['name']}, context "
            f"{protocol['context_length']:,} bytes{stride}, {counted(self.bytes, 'byte')} in "
            f"{counted(self.documents, 'document')}, {self.precision}{interval})"
        )


@torch.no_grad()
def evaluate(
    model: ByteLM,
    corpus: ByteCorpus,
    protocol: str = "disjoint",
    context_length: int = 1024,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    max_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    stride: int | None = None,
    saved_progress: SavedProgress | None = None,
    all_ranks: bool = False,
) -> BitsPerByte:
    """Score every byte of every document once; a document's first byte is charged 8 bits.

    Args:
        protocol: ``disjoint``: windows of ``context_length`` predictions, each from a fresh state, its first
            prediction from the one byte before it. ``sliding``: each window begins ``stride`` bytes after the
            one before and scores what that one did not. ``stateful``: the state is carried through the whole
            document, and ``context_length`` is only the length of the chunks.
        batch_size: windows, or documents in flight; changes the speed and not the figure.
        precision: ``fp32`` (the weights' own), or ``bf16`` by autocast.
        max_bytes: score only the first bytes of the corpus (the last document may be cut).
        progress: called with (bytes scored, bytes to score), of this rank.
        stride: of ``sliding``; half the context by default.
        saved_progress: where to note how far it is, and to go on from after an interruption.
        all_ranks: share the documents among the ranks of the process group; each returns the whole figure.

    Raises:
        UserError: unknown protocol or precision, a length or size below 1, a model that cannot do the
            protocol or gives no probabilities.
    """
    started = time.perf_counter()
    model.to(device)
    names, documents = _named_documents(corpus, max_bytes)
    if not documents:
        raise UserError("this data holds no bytes to measure; choose another split= or data=")
    described: dict[str, Any] = {
        "name": protocol,
        "context_length": context_length,
        "first_byte": "8 bits",
        "max_bytes": max_bytes,
    }
    if protocol == "sliding":
        described["stride"] = stride = default_stride(context_length) if stride is None else stride
    data, weights = corpus.fingerprint, weights_fingerprint(model)
    rank, ranks = rank_and_count() if all_ranks else (0, 1)
    mine = deal([len(document) for document in documents], ranks)[rank]
    notes = None
    if saved_progress is not None:
        lanes = batch_size if protocol == "stateful" else None
        notes = saved_progress.open(
            {"protocol": described, "data": data, "weights": weights, "precision": precision}
            | {"rank": [rank, ranks], "lanes": lanes}
        )
    nats = np.zeros(len(documents))
    saved = notes.read(model.device) if notes else None
    cursor, nats[mine] = saved if saved else (Cursor.at_start(len(mine)), FIRST_BYTE_NATS)
    own = [documents[i] for i in mine]
    spans = scored_spans(
        model, own, protocol, context_length, batch_size, precision, stride, cursor, progress
    )
    for batch in spans:
        for span in batch:
            nats[mine[span.document]] += span.nats.sum()
        if notes:
            notes.save_if_due(cursor, nats[mine])
    if ranks > 1:
        nats = sum_over_ranks(nats, model.device)
    if notes:
        notes.remove()
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    total = int(lengths.sum())
    return BitsPerByte(
        bits_per_byte=float(nats.sum()) / total / math.log(2),
        nats=float(nats.sum()),
        bytes=total,
        documents=len(documents),
        interval=bootstrap_interval(nats, lengths),
        protocol=described,
        data_fingerprint=data,
        weights_fingerprint=weights,
        precision=precision,
        device=str(device),
        seconds=time.perf_counter() - started,
        per_document=[
            DocumentBits(name, int(length), float(bits))
            for name, length, bits in zip(names, lengths, nats / lengths / math.log(2), strict=True)
        ],
    )


def score(
    model: ByteLM,
    corpus: ByteCorpus,
    protocol: str,
    context_length: int,
    batch_size: int,
    precision: str = "fp32",
    max_bytes: int | None = None,
) -> tuple[int, int, float]:
    """(bytes, documents, nats) as :func:`evaluate` finds them, on the device the model is on."""
    documents = first_documents(corpus, max_bytes)
    spans = scored_spans(model, documents, protocol, context_length, batch_size, precision)
    nats = sum(float(span.nats.sum()) for batch in spans for span in batch)
    return sum(map(len, documents)), len(documents), nats + len(documents) * FIRST_BYTE_NATS


@torch.no_grad()
def scored_spans(
    model: ByteLM,
    documents: Sequence[np.ndarray],
    protocol: str,
    context_length: int,
    batch_size: int,
    precision: str = "fp32",
    stride: int | None = None,
    cursor: Cursor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[Span]]:
    """The nats of each byte but the documents' first, in batches, as :func:`evaluate` sums them.

    ``cursor`` says where to begin; when a batch is yielded it stands behind it.
    """
    _check(protocol, context_length, batch_size, stride)
    cursor = Cursor.at_start(len(documents)) if cursor is None else cursor
    total = sum(map(len, documents))
    if protocol == "stateful":
        spans = protocols.stateful(model, documents, context_length, batch_size, cursor)
    else:
        if protocol == "disjoint":
            stride = context_length
        elif stride is None:
            stride = default_stride(context_length)
        spans = protocols.sliding(model, documents, context_length, stride, batch_size, cursor)
    was_training = model.training
    model.eval()
    done = int(cursor.scored.sum())
    try:
        with autocast(model.device, precision):
            for batch in spans:
                if not all(np.isfinite(span.nats).all() for span in batch):
                    raise UserError(
                        "the model gives NaN or infinite values, which are no probabilities: its training "
                        "diverged or its weights are damaged; choose another checkpoint, or precision=fp32"
                    )
                cursor.advance(batch)
                done += sum(len(span.nats) for span in batch)
                if progress is not None:
                    progress(done, total)
                yield batch
    finally:
        model.train(was_training)
    if progress is not None:
        progress(total, total)


def default_stride(context_length: int) -> int:
    """Half the context: each byte is computed twice, as in the paper's tables."""
    return max(1, context_length // 2)


def bootstrap_interval(nats: np.ndarray, lengths: np.ndarray) -> tuple[float, float] | None:
    """The 2.5 % and 97.5 % points of bits per byte over 1,000 resamples of the documents (Efron 1979)."""
    if len(nats) < 2:
        return None
    draws = np.random.default_rng(0)
    figures = []
    for _ in range(_RESAMPLES):
        chosen = draws.integers(0, len(nats), len(nats))
        figures.append(nats[chosen].sum() / lengths[chosen].sum() / math.log(2))
    low, high = np.quantile(figures, [0.025, 0.975])
    return float(low), float(high)


def first_documents(corpus: ByteCorpus, max_bytes: int | None = None) -> list[np.ndarray]:
    """The non-empty documents within the first ``max_bytes`` of the corpus, the last one cut to fit."""
    return _named_documents(corpus, max_bytes)[1]


def _named_documents(corpus: ByteCorpus, max_bytes: int | None) -> tuple[list[str], list[np.ndarray]]:
    if max_bytes is not None and max_bytes < 1:
        raise UserError(f"max_bytes must be 1 or more, not {max_bytes}")
    end = corpus.num_bytes if max_bytes is None else min(max_bytes, corpus.num_bytes)
    bounds = np.minimum(corpus.offsets, end)
    kept = [(i, a, b) for i, (a, b) in enumerate(pairwise(bounds)) if b > a]
    return [corpus.names[i] for i, _, _ in kept], [corpus.bytes[a:b] for _, a, b in kept]


def _check(protocol: str, context_length: int, batch_size: int, stride: int | None) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol must be one of {', '.join(PROTOCOLS)}, not '{protocol}'")
    for name, value in (("context_length", context_length), ("batch_size", batch_size), ("stride", stride)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be 1 or more, not {value}")
    if stride is not None and stride > context_length:
        raise UserError(f"stride must be at most context_length ({context_length}), not {stride}")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a model computes in ``fp32`` or ``bf16``."""
    if precision == "fp32":
        return nullcontext()
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    raise UserError(f"precision must be fp32 or bf16, not '{precision}'")
