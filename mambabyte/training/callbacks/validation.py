"""Validation bits per byte during training."""

import math
from functools import cached_property

import numpy as np
from lightning.pytorch import Trainer

from mambabyte.data import ByteCorpus
from mambabyte.evaluation.protocols import FIRST_BYTE_NATS, Protocol, scored_spans
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.module import ByteLMModule
from mambabyte.training.settings import TrainSettings


class Validation(StepCallback):
    """Scores a sample of the validation split (protocol ``disjoint``) on rank 0, the same at every step."""

    def __init__(self, settings: TrainSettings, corpus: ByteCorpus) -> None:
        self._settings = settings
        self._corpus = corpus
        self._bits_per_byte: float | None = None

    def columns(self) -> dict[str, float | None]:
        return {"validation_bits_per_byte": self._bits_per_byte}

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        self._bits_per_byte = None
        settings = self._settings
        if not is_due(step, settings.callbacks.validate_every):
            return
        with module.excluded_from_timing():
            if (model := module.unsharded_model) is None:
                return
            batch_size = int(settings.trainer.micro_batch_size)
            protocol = Protocol("disjoint", settings.context_length, batch_size=batch_size)
            windows, first_bytes = self._sample
            nats = first_bytes * FIRST_BYTE_NATS
            nats += sum(span.nats.sum() for batch in scored_spans(model, windows, protocol) for span in batch)
            total = first_bytes + sum(len(window) - 1 for window in windows)
            self._bits_per_byte = float(nats) / total / math.log(2)

    @cached_property
    def _sample(self) -> tuple[list[np.ndarray], int]:
        return spread_windows(
            self._corpus, self._settings.context_length, self._settings.callbacks.validate_bytes
        )


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
