"""Validation bits per byte during training."""

import math
import sys
from functools import cached_property

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from mambabyte.data import ByteCorpus
from mambabyte.data.sources.mixture import parts_of
from mambabyte.evaluation.protocols import FIRST_BYTE_NATS, Protocol, scored_spans
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import ReadsChunks
from mambabyte.runs.metrics_csv import CHUNKS, PART
from mambabyte.runtime.precision import PrecisionName
from mambabyte.runtime.process_group import rank_and_count, sum_over_ranks
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.module import ByteLMModule
from mambabyte.training.settings import TrainSettings


class Validation(StepCallback):
    """Scores a sample of the validation split (protocol ``disjoint``), the same at every step, its windows
    shared among the ranks. Of a mixture, that of each part too; and of a model of chunks, how many bytes they
    have, in the first windows of the sample that are full.

    It is computed in fp32; in bf16 where training is and fp32 would be several times slower (on a GPU) or
    weights are gathered in bf16 (FSDP).
    """

    def __init__(self, settings: TrainSettings, corpus: ByteCorpus) -> None:
        self._settings = settings
        self._corpus = corpus
        parts = parts_of(corpus)
        self._columns = ["validation_bits_per_byte", *(f"{PART}{name}" for name in parts)]
        # the document after the last of each part; a corpus that is no mixture is one part
        self._ends = [last for _, last in parts.values()] or [corpus.num_documents]
        self._bits_per_byte: list[float | None] = [None] * len(self._columns)
        self._chunk_sizes: list[float | None] = []

    def columns(self) -> dict[str, float | None]:
        sizes = {f"{CHUNKS}{stage}": size for stage, size in enumerate(self._chunk_sizes, 1)}
        return {**dict(zip(self._columns, self._bits_per_byte, strict=True)), **sizes}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        validates = self._settings.callbacks.validate_every > 0 and trainer.is_global_zero
        if validates and self._precision(trainer.strategy.root_device) == "bf16":
            print(
                "mambabyte: validation is computed in bf16, as training; eval's is in fp32", file=sys.stderr
            )
        assert isinstance(module, ByteLMModule)
        if self._settings.callbacks.validate_every > 0 and isinstance(module.model, ReadsChunks):
            self._chunk_sizes = [None] * len(self._measure_chunks(module.model))

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        self._bits_per_byte = [None] * len(self._columns)
        self._chunk_sizes = [None] * len(self._chunk_sizes)
        settings = self._settings
        if not is_due(step, settings.callbacks.validate_every):
            return
        with module.excluded_from_timing():
            self._bits_per_byte = self._measure(module.model)
            if self._chunk_sizes:
                self._chunk_sizes = self._measure_chunks(module.model)

    def _measure(self, model: ByteLM) -> list[float | None]:
        """On every rank, which all must call this. A rank runs as many windows as any other, since FSDP's
        ranks work together in each; what it runs for company is not counted.

        Returns:
            The bits per byte of all, and of each part of a mixture: None of one that has no window.
        """
        windows, part_of, first_bytes = self._sample
        rank, ranks = rank_and_count()
        mine = len(range(rank, len(windows), ranks))
        run = [windows[i % len(windows)] for i in range(rank, len(windows) + rank, ranks)]
        protocol = Protocol(
            "disjoint",
            self._settings.context_length,
            batch_size=int(self._settings.trainer.micro_batch_size),
            precision=self._precision(model.device),
        )
        sums = np.zeros((len(self._ends), 2))  # of each part, nats and scored bytes; exact up to 2**53
        if rank == 0:  # no window predicts first bytes
            sums += np.outer(first_bytes, (FIRST_BYTE_NATS, 1))
        for batch in scored_spans(model, run, protocol):
            for span in batch:
                if span.document < mine:
                    sums[part_of[rank + span.document * ranks]] += float(span.nats.sum()), len(span.nats)
        if ranks > 1:
            sums = sum_over_ranks(sums, model.device)
        rows = [sums.sum(axis=0), *(sums if len(self._columns) > 1 else [])]
        return [float(nats) / scored / math.log(2) if scored else None for nats, scored in rows]

    def _measure_chunks(self, model: ByteLM) -> list[float | None]:
        """Bytes per chunk of each stage, None where there is no chunk. On every rank, which all must call
        this: each runs one micro-batch of full windows, or fewer."""
        assert isinstance(model, ReadsChunks)
        windows, _, _ = self._sample
        if not windows:
            return []
        longest = max(map(len, windows))
        full = [window for window in windows if len(window) == longest]
        rank, ranks = rank_and_count()
        batch = np.stack(full[rank::ranks][: int(self._settings.trainer.micro_batch_size)] or full[:1])
        bf16 = self._precision(model.device) == "bf16"
        was_training = model.training
        model.eval()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            rates = np.array(model.chunk_rates(torch.from_numpy(batch).to(model.device)))
        model.train(was_training)
        sums = np.array([batch.size, *(rates * batch.size)])
        if ranks > 1:
            sums = sum_over_ranks(sums, model.device)
        return [float(sums[0] / chunks) if chunks else None for chunks in sums[1:]]

    def _precision(self, device: torch.device) -> PrecisionName:
        return validation_precision(self._settings, device)

    @cached_property
    def _sample(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """The windows of `spread_windows` without those that predict nothing; the part of each; and how many
        windows begin a document, for each part."""
        windows, documents, begin = spread_windows(
            self._corpus, self._settings.context_length, self._settings.callbacks.validate_bytes
        )
        parts = np.searchsorted(self._ends, documents, side="right")
        first_bytes = np.bincount(parts[begin], minlength=len(self._ends))
        predicting = np.flatnonzero([len(window) > 1 for window in windows])
        return [windows[i] for i in predicting], parts[predicting], first_bytes


def validation_precision(settings: TrainSettings, device: torch.device) -> PrecisionName:
    """In which precision a run validates while it trains on this device."""
    trainer = settings.trainer
    needed = device.type == "cuda" or (trainer.strategy == "fsdp" and trainer.world_size > 1)
    return "bf16" if trainer.precision == "bf16" and needed else "fp32"


def spread_windows(
    corpus: ByteCorpus, context_length: int, num_bytes: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """About ``num_bytes`` of a corpus in windows of the protocol ``disjoint``, spread evenly over all of it.

    Returns:
        The (n) windows, each with the byte before the first that it predicts; the (n,) document of each; and
        (n,) whether it begins that document, so that its first byte is scored too. Of the whole corpus they
        give the protocol's figure.
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
    return windows, documents, begins == 0
