"""Bits per byte over a corpus, with everything needed to repeat the measurement."""

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from mambabyte.checkpoints import weights_fingerprint
from mambabyte.data import ByteCorpus
from mambabyte.data.sources.mixture import parts_of
from mambabyte.errors import UserError
from mambabyte.evaluation.protocols import FIRST_BYTE_NATS, Cursor, Protocol, scored_spans
from mambabyte.evaluation.resume import SavedProgress
from mambabyte.models import ByteLM
from mambabyte.runtime.process_group import rank_and_count, sum_over_ranks
from mambabyte.runtime.progress import ProgressCallback
from mambabyte.runtime.units import counted, protocol_in_words

_RESAMPLES = 1000


@dataclass(frozen=True)
class DocumentBits:
    """The bits per byte of one document, or of one part of a mixture."""

    name: str
    bytes: int
    bits_per_byte: float


@dataclass(frozen=True)
class BitsPerByte:
    """A figure and how it was measured: ``bits_per_byte`` = ``nats`` / ``bytes`` / ln 2.

    interval: of :func:`bootstrap_interval`. protocol: as :meth:`Protocol.to_dict` gives it.
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
        return {k: value for k, value in asdict(self).items() if per_document or k != "per_document"}

    def __str__(self) -> str:
        interval = ""
        if self.interval is not None:
            interval = f", 95 % of resampled documents: {self.interval[0]:.4f} to {self.interval[1]:.4f}"
        return (
            f"{self.bits_per_byte:.4f} bits per byte ({protocol_in_words(self.protocol)}, "
            f"{counted(self.bytes, 'byte')} in {counted(self.documents, 'document')}, "
            f"{self.precision}{interval})"
        )


def evaluate(
    model: ByteLM,
    corpus: ByteCorpus,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    max_bytes: int | None = None,
    progress: ProgressCallback | None = None,
    saved_progress: SavedProgress | None = None,
    all_ranks: bool = False,
) -> BitsPerByte:
    """Score every byte of every document once; a document's first byte is charged 8 bits.

    Args:
        max_bytes: score only the first bytes of the corpus (the last document may be cut).
        progress: called with (bytes scored, bytes to score), of this rank.
        saved_progress: where to save unfinished work, and to resume it from after an interruption.
        all_ranks: share the documents among the ranks of the process group; each returns the whole figure.

    Raises:
        UserError: no bytes to measure, a model that cannot do the protocol or gives no probabilities.
    """
    started = time.perf_counter()
    model.to(device)
    names, documents = _named_documents(corpus, max_bytes)
    if not documents:
        raise UserError("this data holds no bytes to measure; choose another split= or data=")
    described = protocol.to_dict(max_bytes)
    data, weights = corpus.fingerprint, weights_fingerprint(model)
    rank, ranks = rank_and_count() if all_ranks else (0, 1)
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    mine = documents_per_rank(lengths.tolist(), ranks)[rank]
    measured: dict[str, Any] = {"protocol": described, "data": data, "weights": weights}
    lanes = protocol.batch_size if protocol.name == "stateful" else None
    measured |= {"precision": protocol.precision, "rank": [rank, ranks], "lanes": lanes}
    unfinished = saved_progress.open(measured) if saved_progress else None
    nats = np.zeros(len(documents))
    saved = unfinished.read(model.device) if unfinished else None
    cursor, nats[mine] = saved if saved else (Cursor.at_start(len(mine)), FIRST_BYTE_NATS)
    for batch in scored_spans(model, [documents[i] for i in mine], protocol, cursor, progress):
        for span in batch:
            nats[mine[span.document]] += span.nats.sum()
        if unfinished:
            unfinished.save_if_due(cursor, nats[mine])
    if ranks > 1:
        nats = sum_over_ranks(nats, model.device)
    if unfinished:
        unfinished.remove()
    total_nats, total_bytes = float(nats.sum()), int(lengths.sum())
    bits = nats / lengths / math.log(2)
    return BitsPerByte(
        bits_per_byte=total_nats / total_bytes / math.log(2),
        nats=total_nats,
        bytes=total_bytes,
        documents=len(documents),
        interval=bootstrap_interval(nats, lengths),
        protocol=described,
        data_fingerprint=data,
        weights_fingerprint=weights,
        precision=protocol.precision,
        device=str(device),
        seconds=time.perf_counter() - started,
        per_document=list(map(DocumentBits, names, lengths.tolist(), bits.tolist())),
    )


def by_part(result: BitsPerByte, corpus: ByteCorpus) -> dict[str, DocumentBits]:
    """The bits per byte of each part of a mixture's corpus, of which ``result`` measured all or the first
    documents; of other corpora, none."""
    parts = {}
    for name, (first, last) in parts_of(corpus).items():
        if documents := result.per_document[first:last]:
            total = sum(each.bytes for each in documents)
            bits = sum(each.bits_per_byte * each.bytes for each in documents)
            parts[name] = DocumentBits(name, total, bits / total)
    return parts


def documents_per_rank(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """The indices of each rank's documents, ascending: longest first, each to the least loaded rank."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in np.argsort([-length for length in lengths], kind="stable"):
        load, rank = heapq.heappop(loads)
        shares[rank].append(int(index))
        heapq.heappush(loads, (load + lengths[index], rank))
    return [sorted(share) for share in shares]


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
    """The non-empty documents within the first ``max_bytes`` of the corpus, the last cut to fit."""
    return _named_documents(corpus, max_bytes)[1]


def _named_documents(corpus: ByteCorpus, max_bytes: int | None) -> tuple[list[str], list[np.ndarray]]:
    if max_bytes is not None and max_bytes < 1:
        raise UserError(f"max_bytes must be 1 or more, not {max_bytes}")
    end = corpus.num_bytes if max_bytes is None else min(max_bytes, corpus.num_bytes)
    bounds = np.minimum(corpus.offsets, end)
    kept = [(i, a, b) for i, (a, b) in enumerate(pairwise(bounds)) if b > a]
    return [corpus.names[i] for i, _, _ in kept], [corpus.bytes[a:b] for _, a, b in kept]
