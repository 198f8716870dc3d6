"""The moment after an optimizer step."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mambabyte.training.module import ByteLMModule


class StepCallback(Callback):
    """Calls :meth:`on_step` after each optimizer step; Lightning's own hook comes after each forward pass."""

    _step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *unused: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            assert isinstance(module, ByteLMModule)
            self.on_step(trainer, module, self._step)

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        """Called when ``step`` optimizer steps are done."""
        raise NotImplementedError


class Spikes(StepCallback):
    """Has the module's policy for bad steps applied before anything else is done with the step."""

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        module.check_spikes(wait=False)


def is_due(step: int, every: int) -> bool:
    """Whether something done ``every`` so many steps (0: never) is due after ``step``."""
    return every > 0 and step % every == 0
