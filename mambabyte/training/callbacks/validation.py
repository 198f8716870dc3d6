"""Validation bits per byte during training."""

import math
import sys
from functools import cached_property

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from mambabyte.data import ByteCorpus
from mambabyte.evaluation.protocols import FIRST_BYTE_NATS, Protocol, scored_spans
from mambabyte.models import ByteLM
from mambabyte.runtime.precision import PrecisionName
from mambabyte.runtime.process_group import rank_and_count, sum_over_ranks
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.module import ByteLMModule
from mambabyte.training.settings import TrainSettings


class Validation(StepCallback):
    """Scores a sample of the validation split (protocol ``disjoint``), the same at every step, its windows
    shared among the ranks.

    It is computed in fp32; in bf16 where training is and fp32 would be several times slower (on a GPU) or
    weights are gathered in bf16 (FSDP).
    """

    def __init__(self, settings: TrainSettings, corpus: ByteCorpus) -> None:
        self._settings = settings
        self._corpus = corpus
        self._bits_per_byte: float | None = None

    def columns(self) -> dict[str, float | None]:
        return {"validation_bits_per_byte": self._bits_per_byte}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        validates = self._settings.callbacks.validate_every > 0 and trainer.is_global_zero
        if validates and self._precision(trainer.strategy.root_device) == "bf16":
            print(
                "mambabyte: validation is computed in bf16, as training; eval's is in fp32", file=sys.stderr
            )

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        self._bits_per_byte = None
        settings = self._settings
        if not is_due(step, settings.callbacks.validate_every):
            return
        with module.excluded_from_timing():
            self._bits_per_byte = self._measure(module.model)

    def _measure(self, model: ByteLM) -> float:
        """On every rank, which all must call this. A rank runs as many windows as any other, since FSDP's
        ranks work together in each; what it runs for company is not counted."""
        windows, first_bytes = self._sample
        rank, ranks = rank_and_count()
        mine = len(range(rank, len(windows), ranks))
        run = [windows[i % len(windows)] for i in range(rank, len(windows) + rank, ranks)]
        protocol = Protocol(
            "disjoint",
            self._settings.context_length,
            batch_size=int(self._settings.trainer.micro_batch_size),
            precision=self._precision(model.device),
        )
        nats, scored = 0.0, 0  # on rank 0, also those of first bytes, which no window predicts
        if rank == 0:
            nats, scored = first_bytes * FIRST_BYTE_NATS, first_bytes
        for batch in scored_spans(model, run, protocol):
            for span in batch:
                if span.document < mine:
                    nats, scored = nats + float(span.nats.sum()), scored + len(span.nats)
        if ranks > 1:
            nats, scored = sum_over_ranks(np.array([nats, scored]), model.device)  # fp64: exact up to 2**53
        return float(nats) / scored / math.log(2)

    def _precision(self, device: torch.device) -> PrecisionName:
        trainer = self._settings.trainer
        needed = device.type == "cuda" or (trainer.strategy == "fsdp" and trainer.world_size > 1)
        return "bf16" if trainer.precision == "bf16" and needed else "fp32"

    @cached_property
    def _sample(self) -> tuple[list[np.ndarray], int]:
        """`spread_windows`, of which those that predict nothing are left out."""
        windows, first_bytes = spread_windows(
            self._corpus, self._settings.context_length, self._settings.callbacks.validate_bytes
        )
        return [window for window in windows if len(window) > 1], first_bytes


def spread_windows(corpus: ByteCorpus, context_length: int, num_bytes: int) -> tuple[list[np.ndarray], int]:
    """About ``num_bytes`` of a corpus in windows of the protocol ``disjoint``, spread evenly over all of it.

    Returns:
        The windows, each with the byte before the first that it predicts; and how many of them begin a
        document, so that their first byte is scored too. Of the whole corpus they give the protocol's figure.
    """
    lengths = np.diff(corpus.offsets)
    counts = np.where(lengths > 0, np.maximum(1, -(-(lengths - 1) // context_length)), 0)
    ends = np.cumsum(counts)
    total = int(ends[-1])
    chosen = min(total, max(1, round(total * num_bytes / corpus.num_bytes)))
    indices = (2 * np.arange(chosen) + 1) * total // (2 * chosen)
    documents = np.searchsorted(ends, indices, side="right")
    begins = (indices - (ends - counts)[documents]) * context_length
    starts = corpus.offsets[documents] + begins
    stops = np.minimum(starts + context_length + 1, corpus.offsets[documents + 1])
    windows = [corpus.bytes[start:stop] for start, stop in zip(starts, stops, strict=True)]
    return windows, int((begins == 0).sum())
