"""Which context each byte is predicted from.

A protocol scores every byte of every document but the first, exactly once, and yields the nats of each as
it goes. Long windows come first, so that those of one batch are of like length and little is computed on
padding, which stands only behind the bytes of a document, where a causal model cannot see it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import VOCABULARY
from mambabyte.models.states import restart_rows, select_rows


@dataclass(frozen=True)
class Span:
    """Nats (n,) float64 of the bytes [start, start + n) of a document."""

    document: int
    start: int
    nats: np.ndarray


@dataclass
class Cursor:
    """How far an evaluation has come: what it needs to go on from there.

    scored: (documents,) int64, bytes of each document that are behind it, from the document's start.
    lanes, state: of ``stateful``: the documents in flight, and the model's state with a row for each.
    """

    scored: np.ndarray
    lanes: list[int] = field(default_factory=list)
    state: Any = None

    @classmethod
    def at_start(cls, documents: int) -> "Cursor":
        """Behind every document's first byte, which no protocol predicts."""
        return cls(np.ones(documents, dtype=np.int64))

    def advance(self, spans: Sequence[Span]) -> None:
        for span in spans:
            self.scored[span.document] = span.start + len(span.nats)


def sliding(
    model: ByteLM,
    documents: Sequence[np.ndarray],
    context_length: int,
    stride: int,
    batch_size: int,
    cursor: Cursor,
) -> Iterator[list[Span]]:
    """Windows of ``context_length`` inputs, each from a fresh state, ``stride`` bytes after the one before.

    The first window of a document scores all its predictions, a later one the last ``stride``, each of which
    sees ``context_length - stride + 1`` bytes or more. With ``stride == context_length`` the windows are
    disjoint: each begins with the last byte that the one before it scored.

    ``cursor`` says what is scored already; the caller advances it by each batch of spans.
    """
    last = np.array([len(document) - 1 for document in documents], dtype=np.int64)
    counts = np.where(last > 0, 1 + -(-np.maximum(last - context_length, 0) // stride), 0)
    owner = np.repeat(np.arange(len(documents)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = number * stride  # the first input
    end = np.minimum(begin + context_length, last[owner])  # the last byte scored
    first = np.where(number == 0, 1, begin - stride + context_length + 1)
    order = np.argsort(begin - end, kind="stable")  # of one document, in the order of the text
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


def stateful(
    model: ByteLM, documents: Sequence[np.ndarray], chunk_length: int, batch_size: int, cursor: Cursor
) -> Iterator[list[Span]]:
    """Each byte from all bytes before it in its document: the state is carried from chunk to chunk.

    ``batch_size`` documents are in flight; one that ends gives its place, with a fresh state, to the next.
    Memory does not grow with the documents' length. When spans are yielded, ``cursor.lanes`` and
    ``cursor.state`` are those that follow them.

    Raises:
        UserError: the model's state grows with what it has read.
    """
    if not model.recurrent:
        raise UserError(
            f"protocol=stateful needs a model whose state stays the same size, which that of "
            f"{type(model).__name__} does not; measure it with protocol=disjoint or protocol=sliding"
        )
    longest_first = np.argsort([-len(document) for document in documents], kind="stable")
    waiting = [int(i) for i in longest_first if cursor.scored[i] < len(documents[i])]
    waiting = [i for i in waiting if i not in cursor.lanes][::-1]
    if not cursor.lanes:
        cursor.lanes = [waiting.pop() for _ in range(min(batch_size, len(waiting)))]
        cursor.state = model.initial_state(len(cursor.lanes)) if cursor.lanes else None
    while cursor.lanes:
        lanes = cursor.lanes
        starts = [int(cursor.scored[i]) for i in lanes]
        windows = [
            documents[i][start - 1 : start + chunk_length] for i, start in zip(lanes, starts, strict=True)
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
    """Inputs and targets (batch, longest window - 1) int64 on the model's device, zero behind each window."""
    block = np.zeros((len(windows), max(map(len, windows))), dtype=np.int64)
    for row, window in zip(block, windows, strict=True):
        row[: len(window)] = window
    on_device = torch.from_numpy(block).to(model.device)
    return on_device[:, :-1], on_device[:, 1:]


def _nats(logits: Tensor, targets: Tensor) -> np.ndarray:
    """(batch, length) float64, from a log-softmax in float32 (float64 for a float64 model)."""
    if logits.shape[-1] != VOCABULARY:
        raise UserError(
            f"this model predicts {logits.shape[-1]} symbols and not the 256 bytes: its bits per byte cannot "
            "be compared; choose a checkpoint of a byte-level model"
        )
    if logits.dtype != torch.float64:
        logits = logits.float()
    # rows of logits as they lie in memory: faster than with the symbols as the second dimension
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return nats.view_as(targets).cpu().double().numpy()
