"""Bits per byte over a corpus, with all that is needed to repeat the figure."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from mambabyte.checkpoints import weights_fingerprint
from mambabyte.data import ByteCorpus
from mambabyte.data.progress import counted
from mambabyte.errors import UserError
from mambabyte.evaluation import protocols
from mambabyte.models import ByteLM

FIRST_BYTE_NATS = math.log(256)  # a document's first byte has nothing before it: 8 bits
_PROTOCOLS = {"disjoint": protocols.disjoint, "stateful": protocols.stateful}


@dataclass(frozen=True)
class BitsPerByte:
    """A figure and its circumstances: ``bits_per_byte`` = ``nats`` / ``bytes`` / ln 2."""

    bits_per_byte: float
    nats: float
    bytes: int
    documents: int
    protocol: dict[str, Any]
    data_fingerprint: str
    weights_fingerprint: str
    precision: str
    device: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        protocol = self.protocol
        return (
            f"{self.bits_per_byte:.4f} bits per byte ({protocol['name']}, context "
            f"{protocol['context_length']:,} bytes, {counted(self.bytes, 'byte')} in "
            f"{counted(self.documents, 'document')}, {self.precision})"
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
) -> BitsPerByte:
    """Score every byte of every document once; a document's first byte is charged 8 bits.

    Args:
        protocol: ``disjoint``: windows of ``context_length`` predictions, each from a fresh state, its first
            prediction from the one byte before it. ``stateful``: the state is carried through the whole
            document, and ``context_length`` is only the length of the chunks.
        batch_size: windows, or documents in flight; changes the speed and not the figure.
        precision: ``fp32``, or ``bf16`` by autocast.
        max_bytes: score only the first bytes of the corpus (the last document may be cut).
        progress: called with (bytes scored, bytes to score).

    Raises:
        UserError: unknown protocol or precision, a length or size below 1.
    """
    started = time.perf_counter()
    model.to(device)
    total, documents, nats = score(
        model, corpus, protocol, context_length, batch_size, precision, max_bytes, progress
    )
    return BitsPerByte(
        bits_per_byte=nats / total / math.log(2),
        nats=nats,
        bytes=total,
        documents=documents,
        protocol={
            "name": protocol,
            "context_length": context_length,
            "first_byte": "8 bits",
            "max_bytes": max_bytes,
        },
        data_fingerprint=corpus.fingerprint,
        weights_fingerprint=weights_fingerprint(model),
        precision=precision,
        device=str(device),
        seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def score(
    model: ByteLM,
    corpus: ByteCorpus,
    protocol: str,
    context_length: int,
    batch_size: int,
    precision: str = "fp32",
    max_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int, float]:
    """(bytes, documents, nats) as :func:`evaluate` finds them, on the device the model is on."""
    if protocol not in _PROTOCOLS:
        raise UserError(f"protocol must be one of {', '.join(_PROTOCOLS)}, not '{protocol}'")
    for name, value in (
        ("context_length", context_length),
        ("batch_size", batch_size),
        ("max_bytes", max_bytes),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name} must be 1 or more, not {value}")
    documents = first_documents(corpus, max_bytes)
    total = sum(map(len, documents))
    done = len(documents)

    def report(scored: int) -> None:
        nonlocal done
        done += scored
        if progress is not None:
            progress(done, total)

    was_training = model.training
    model.eval()
    try:
        with autocast(model.device, precision):
            nats = _PROTOCOLS[protocol](model, documents, context_length, batch_size, report)
    finally:
        model.train(was_training)
    return total, len(documents), float(nats.sum()) + len(documents) * FIRST_BYTE_NATS


def first_documents(corpus: ByteCorpus, max_bytes: int | None = None) -> list[np.ndarray]:
    """The non-empty documents within the first ``max_bytes`` of the corpus, the last one cut to fit."""
    end = corpus.num_bytes if max_bytes is None else min(max_bytes, corpus.num_bytes)
    bounds = np.minimum(corpus.offsets, end)
    return [corpus.bytes[a:b] for a, b in pairwise(bounds) if b > a]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a model computes in ``fp32`` or ``bf16``."""
    if precision == "fp32":
        return nullcontext()
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    raise UserError(f"precision must be fp32 or bf16, not '{precision}'")


def progress_line(done: int, total: int) -> None:
    """Show the progress of an evaluation on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        print(
            f"\rscored {done / 1e6:.1f}/{total / 1e6:.1f} MB",
            end="" if done < total else "\n",
            file=sys.stderr,
        )
