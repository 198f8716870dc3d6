"""Validation bits per byte during training."""

import math

from lightning.pytorch import Trainer

from mambabyte.data import ByteCorpus
from mambabyte.evaluation.bits_per_byte import score
from mambabyte.evaluation.protocols import Protocol
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.module import ByteLMModule


class Validation(StepCallback):
    """Scores the first ``max_bytes`` of the validation split (protocol ``disjoint``) on rank 0."""

    def __init__(
        self, corpus: ByteCorpus, every: int, max_bytes: int, context_length: int, batch_size: int
    ) -> None:
        self._corpus = corpus
        self._every = every
        self._max_bytes = max_bytes
        self._context_length = context_length
        self._batch_size = batch_size
        self._bits_per_byte: float | None = None

    def columns(self) -> dict[str, float | None]:
        return {"validation_bits_per_byte": self._bits_per_byte}

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        self._bits_per_byte = None
        if not is_due(step, self._every):
            return
        with module.excluded_from_timing():
            model = module.unsharded_model
            if model is None or not trainer.is_global_zero:
                return
            protocol = Protocol("disjoint", self._context_length, batch_size=self._batch_size)
            total, nats = score(model, self._corpus, protocol, self._max_bytes)
            self._bits_per_byte = nats / total / math.log(2)
