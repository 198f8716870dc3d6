"""Validation bits per byte during training."""

import math

from lightning.pytorch import Trainer

from mambabyte.data import ByteCorpus
from mambabyte.evaluation.bits_per_byte import score
from mambabyte.evaluation.protocols import Protocol
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.module import ByteLMModule
from mambabyte.training.settings import TrainSettings


class Validation(StepCallback):
    """Scores the first bytes of the validation split (protocol ``disjoint``) on rank 0."""

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
            total, nats = score(model, self._corpus, protocol, settings.callbacks.validate_bytes)
            self._bits_per_byte = nats / total / math.log(2)
