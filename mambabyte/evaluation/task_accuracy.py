"""The accuracy of a model on a synthetic task: the share of answers that it finds likeliest of all bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mambabyte.checkpoints import weights_fingerprint
from mambabyte.data.tasks import TaskSequences
from mambabyte.data.windows.batches import as_tensors
from mambabyte.data.windows.policies import NOT_SCORED
from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.runtime.precision import PrecisionName
from mambabyte.runtime.process_group import rank_and_count, sum_over_ranks
from mambabyte.runtime.progress import ProgressCallback
from mambabyte.runtime.units import accuracy_in_words

CHUNK_LENGTH = 4096  # of long sequences


@dataclass(frozen=True)
class Answers:
    """What a model answered to some sequences of a task: sums, from which the figures follow."""

    nats: float
    answers: int
    right: int
    sequences: int
    right_sequences: int

    @property
    def accuracy(self) -> float:
        """The share of answers that are right."""
        return self.right / self.answers

    @property
    def sequence_accuracy(self) -> float:
        """The share of sequences whose answers are all right."""
        return self.right_sequences / self.sequences

    @property
    def bits_per_answer(self) -> float:
        return self.nats / self.answers / math.log(2)


@dataclass(frozen=True)
class TaskAccuracy:
    """`Answers` of a whole split, and how they were measured. An answer is a byte: ``bytes`` counts answers,
    ``bits_per_byte`` is over them alone, and ``documents`` counts sequences."""

    accuracy: float
    sequence_accuracy: float
    chance: float
    bits_per_byte: float
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
        return accuracy_in_words(self.to_dict())


def evaluate_task(
    model: ByteLM,
    sequences: TaskSequences,
    batch_size: int = 8,
    chunk_length: int | None = None,
    precision: PrecisionName = "fp32",
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
    all_ranks: bool = False,
) -> TaskAccuracy:
    """Answer every sequence; see `count_answers` for the arguments and what is raised.

    Args:
        all_ranks: share the sequences among the ranks of the process group; each returns the whole figure.
    """
    started = time.perf_counter()
    model.to(device)
    found = count_answers(model, sequences, batch_size, chunk_length, precision, progress, all_ranks)
    return TaskAccuracy(
        accuracy=found.accuracy,
        sequence_accuracy=found.sequence_accuracy,
        chance=1 / sequences.task.contents,
        bits_per_byte=found.bits_per_answer,
        bytes=found.answers,
        documents=found.sequences,
        protocol={
            "name": "answers",
            "context_length": sequences.context_length,
            "max_bytes": sequences.max_bytes,
        },
        data_fingerprint=sequences.fingerprint,
        weights_fingerprint=weights_fingerprint(model),
        precision=precision,
        device=str(device),
        seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def count_answers(
    model: ByteLM,
    sequences: TaskSequences,
    batch_size: int = 8,
    chunk_length: int | None = None,
    precision: PrecisionName = "fp32",
    progress: ProgressCallback | None = None,
    all_ranks: bool = False,
) -> Answers:
    """Give every sequence to the model, each from a fresh state, and count.

    Args:
        chunk_length: read longer sequences in chunks of so many bytes, carrying the state: the same figures,
            in memory that grows with the length only as the model's state does. None: in one piece.
        progress: called with (bytes read, bytes to read), of this rank.
        all_ranks: every rank must call this. A rank runs as many batches as any other, since FSDP's ranks
            work together in each; what it runs for company is not counted.

    Raises:
        UserError: the model gives no probabilities.
    """
    rank, ranks = rank_and_count() if all_ranks else (0, 1)
    mine = np.arange(rank, sequences.count + rank, ranks)
    total, done = len(mine) * sequences.context_length, 0
    sums = np.zeros(5)  # exact up to 2**53
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            for begin in range(0, len(mine), batch_size):
                positions = mine[begin : begin + batch_size]
                batch = as_tensors(sequences.batch(positions % sequences.count))
                counted_rows = torch.from_numpy(positions < sequences.count)
                sums += _sums(model, batch["bytes"], batch["targets"].long(), counted_rows, chunk_length)
                done += batch["bytes"].numel()
                if progress is not None:
                    progress(done, total)
    finally:
        model.train(was_training)
    if ranks > 1:
        sums = sum_over_ranks(sums, model.device)
    nats, *counts = sums.tolist()
    if not math.isfinite(nats):
        raise UserError(
            "the model outputs NaN or infinite logits: its training diverged or its weights are damaged; "
            "choose another checkpoint, or precision=fp32"
        )
    return Answers(nats, *map(int, counts))


def _sums(
    model: ByteLM, inputs: Tensor, targets: Tensor, counted_rows: Tensor, chunk_length: int | None
) -> np.ndarray:
    """The fields of `Answers` over one batch: inputs, targets (b, L), of the rows (b,) to count."""
    nats, right = torch.zeros(len(inputs), dtype=torch.float64), torch.zeros(len(inputs), dtype=torch.int64)
    for start, logits in _chunks(model, inputs, chunk_length):
        part = targets[:, start : start + logits.shape[1]]
        rows, columns = (part != NOT_SCORED).nonzero(as_tuple=True)
        chosen = logits[rows.to(logits.device), columns.to(logits.device)].cpu()
        chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
        expected = part[rows, columns]
        losses = torch.nn.functional.cross_entropy(chosen, expected, reduction="none")
        nats.index_add_(0, rows, losses.double())
        right.index_add_(0, rows, (chosen.argmax(dim=-1) == expected).long())
    answers = (targets != NOT_SCORED).sum(dim=1)
    each = torch.stack((nats, answers, right, torch.ones_like(right), right == answers), dim=1)
    return each[counted_rows].sum(dim=0).numpy()


def _chunks(model: ByteLM, inputs: Tensor, chunk_length: int | None) -> Iterator[tuple[int, Tensor]]:
    """Where each chunk begins, and its logits (b, l, 256)."""
    inputs = inputs.to(model.device)
    length = inputs.shape[1]
    if chunk_length is None or length <= chunk_length:
        yield 0, model(inputs)
        return
    state = None
    for start in range(0, length, chunk_length):
        logits, state = model.prefill(inputs[:, start : start + chunk_length], state)
        yield start, logits
