"""Protocols: the context that each byte is predicted from.

A protocol scores every byte of every document except the first exactly once, and yields the nats as it goes.
Longer windows come first, so that those of one batch are of similar length and little is computed on padding.
Padding only follows the bytes of a document, where a causal model cannot see it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mambabyte.config.settings import Settings, setting
from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import VOCABULARY
from mambabyte.models.states import restart_rows, select_rows
from mambabyte.runtime.precision import PrecisionName
from mambabyte.runtime.progress import ProgressCallback

FIRST_BYTE_NATS = math.log(256)  # a document's first byte has no context: 8 bits
ProtocolName = Literal["disjoint", "sliding", "stateful"]


@dataclass
class Protocol(Settings):
    """How documents are cut into windows, and how those are computed.

    Args:
        name: ``disjoint``: windows of ``context_length`` predictions, each from a fresh state, its first
            prediction from the one byte before it. ``sliding``: each window begins ``stride`` bytes after the
            previous one and scores what that one did not. ``stateful``: the state is carried through the
            whole document, and ``context_length`` is only the length of the chunks.
        stride: of ``sliding``; half the context by default, as in the paper's tables.
        batch_size: windows, or documents in flight; changes the speed and not the figure.
        precision: ``fp32`` (the weights' own), or ``bf16`` by autocast.

    Raises:
        UserError: unknown name or precision, or a length or size of another type or out of range.
    """

    name: ProtocolName = field(default="disjoint", metadata={"key": "protocol"})
    context_length: int = setting(default=1024, at_least=1, at_most=2**30)
    stride: int | None = setting(default=None, at_least=1, at_most=2**30)
    batch_size: int = setting(default=8, at_least=1, at_most=2**20)
    precision: PrecisionName = "fp32"

    def __post_init__(self) -> None:
        if self.stride is not None and self.name != "sliding":
            raise UserError(f"stride is of protocol=sliding only, not of {self.name}: leave it out")
        if self.stride is not None and self.stride > self.context_length:
            most = f"context_length ({self.context_length})"
            raise UserError(f"stride must be at most {most}, not {self.stride}")

    @property
    def step(self) -> int:
        """Bytes from the start of one window to the start of the next."""
        if self.name != "sliding":
            return self.context_length
        return max(1, self.context_length // 2) if self.stride is None else self.stride

    def to_dict(self, max_bytes: int | None) -> dict[str, Any]:
        """What decides a figure on the first ``max_bytes`` bytes, in plain JSON."""
        values: dict[str, Any] = {"name": self.name, "context_length": self.context_length}
        values |= {"first_byte": "8 bits", "max_bytes": max_bytes}
        return values | {"stride": self.step} if self.name == "sliding" else values


@dataclass(frozen=True)
class Span:
    """Nats (n,) float64 of the bytes [start, start + n) of a document."""

    document: int
    start: int
    nats: np.ndarray


@dataclass
class Cursor:
    """How far an evaluation has come: all it needs to resume.

    scored: (documents,) int64, the bytes of each document scored so far, counted from its start.
    lanes, state: of ``stateful``: the documents in flight, and the model's state with a row for each.
    """

    scored: np.ndarray
    lanes: list[int] = field(default_factory=list)
    state: Any = None

    @classmethod
    def at_start(cls, documents: int) -> "Cursor":
        """After every document's first byte, which no protocol predicts."""
        return cls(np.ones(documents, dtype=np.int64))


@torch.no_grad()
def scored_spans(
    model: ByteLM,
    documents: Sequence[np.ndarray],
    protocol: Protocol,
    cursor: Cursor | None = None,
    progress: ProgressCallback | None = None,
) -> Iterator[list[Span]]:
    """Score each byte of each document except the first, batch by batch.

    Args:
        cursor: where to begin; it is advanced past each batch before the batch is yielded.
        progress: called with (bytes scored, bytes to score).

    Raises:
        UserError: the model cannot do the protocol, or gives no probabilities.
    """
    cursor = Cursor.at_start(len(documents)) if cursor is None else cursor
    total, done = sum(map(len, documents)), int(cursor.scored.sum())
    batches = (_stateful if protocol.name == "stateful" else _windowed)(model, documents, protocol, cursor)
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=protocol.precision == "bf16"):
            for batch in batches:
                if not all(np.isfinite(span.nats).all() for span in batch):
                    raise UserError(
                        "the model outputs NaN or infinite logits: its training "
                        "diverged or its weights are damaged; choose another checkpoint, or precision=fp32"
                    )
                for span in batch:
                    cursor.scored[span.document] = span.start + len(span.nats)
                    done += len(span.nats)
                if progress is not None:
                    progress(done, total)
                yield batch
    finally:
        model.train(was_training)
    if progress is not None:
        progress(total, total)


def _windowed(
    model: ByteLM, documents: Sequence[np.ndarray], protocol: Protocol, cursor: Cursor
) -> Iterator[list[Span]]:
    """``disjoint`` and ``sliding``: windows of ``context_length`` inputs, ``step`` bytes apart.

    The first window of a document scores all its predictions, a later one only the last ``step``, each of
    which sees ``context_length - step + 1`` bytes or more. Disjoint windows are ``context_length`` bytes
    apart, and each begins with the last byte that the previous one scored.
    """
    context_length, step, batch_size = protocol.context_length, protocol.step, protocol.batch_size
    last = np.array([len(document) - 1 for document in documents], dtype=np.int64)
    known = model.config.positions
    if known is not None and min(context_length, last.max(initial=0)) > known:
        raise UserError(
            f"context_length={context_length:,} is more than the {known:,} bytes that this {model.kind} has "
            f"positions for: measure it with context_length={known} or less"
        )
    counts = np.where(last > 0, 1 + -(-np.maximum(last - context_length, 0) // step), 0)
    owner = np.repeat(np.arange(len(documents)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = number * step  # the first input
    end = np.minimum(begin + context_length, last[owner])  # the last byte scored
    first = np.where(number == 0, 1, begin - step + context_length + 1)  # the first byte scored
    order = np.argsort(begin - end, kind="stable")  # longest first; within a document, from its start
    order = order[first[order] >= cursor.scored[owner[order]]]
    for place in range(0, len(order), batch_size):
        chosen = order[place : place + batch_size]
        windows = [documents[owner[i]][begin[i] : end[i] + 1] for i in chosen]
        inputs, targets = _pad(windows, model)
        nats = _nats(model(inputs), targets)
        yield [
            Span(int(owner[i]), int(first[i]), row[first[i] - begin[i] - 1 : end[i] - begin[i]])
            for i, row in zip(chosen, nats, strict=True)
        ]


def _stateful(
    model: ByteLM, documents: Sequence[np.ndarray], protocol: Protocol, cursor: Cursor
) -> Iterator[list[Span]]:
    """Each byte from all bytes before it in its document: the state is carried from chunk to chunk.

    ``batch_size`` documents are in flight; when one ends, the next takes its row with a fresh state. Memory
    does not grow with the documents' length. When spans are yielded, ``cursor.lanes`` and ``cursor.state``
    are already those of the next batch.
    """
    if not model.recurrent:
        raise UserError(
            f"protocol=stateful needs a model whose state stays the same size, and that of {model.kind} "
            "grows; measure it with protocol=disjoint or protocol=sliding"
        )
    longest_first = np.argsort([-len(document) for document in documents], kind="stable")
    waiting = [int(i) for i in longest_first if cursor.scored[i] < len(documents[i])]
    waiting = [i for i in waiting if i not in cursor.lanes][::-1]
    if not cursor.lanes:
        cursor.lanes = [waiting.pop() for _ in range(min(protocol.batch_size, len(waiting)))]
        cursor.state = model.initial_state(len(cursor.lanes)) if cursor.lanes else None
    while cursor.lanes:
        lanes = cursor.lanes
        starts = [int(cursor.scored[i]) for i in lanes]
        windows = [
            documents[i][start - 1 : start + protocol.context_length]
            for i, start in zip(lanes, starts, strict=True)
        ]
        inputs, targets = _pad(windows, model)
        logits, state = model.prefill(inputs, cursor.state)
        spans = [
            Span(i, start, row[: len(window) - 1])
            for i, start, row, window in zip(lanes, starts, _nats(logits, targets), windows, strict=True)
        ]
        kept, fresh, following = [], [], []
        for row, span in enumerate(spans):
            document = span.document
            if span.start + len(span.nats) == len(documents[document]):
                if not waiting:
                    continue
                document = waiting.pop()
                fresh.append(row)
            kept.append(row)
            following.append(document)
        state = restart_rows(state, model, fresh)
        cursor.lanes = following
        cursor.state = state if len(kept) == len(spans) else select_rows(state, kept)
        yield spans


def _pad(windows: list[np.ndarray], model: ByteLM) -> tuple[Tensor, Tensor]:
    """Inputs and targets (batch, longest window - 1) int64 on the model's device, zero after each window."""
    rows = [torch.from_numpy(window.astype(np.int64)) for window in windows]
    block = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    return block[:, :-1], block[:, 1:]


def _nats(logits: Tensor, targets: Tensor) -> np.ndarray:
    """(batch, length) float64, from a log-softmax in float32 (float64 for a float64 model)."""
    if logits.shape[-1] != VOCABULARY:
        raise UserError(
            f"this model predicts {logits.shape[-1]} symbols and not the 256 bytes: its bits per byte cannot "
            "be compared; choose a checkpoint of a byte-level model"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # logits in their order in memory: faster than with the symbols as the second dimension
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return nats.view_as(targets).cpu().double().numpy()
