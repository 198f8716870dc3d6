"""The base of callbacks that act after optimizer steps."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mambabyte.training.module import ByteLMModule


class StepCallback(Callback):
    """Calls :meth:`on_step` after each optimizer step; Lightning's own hook runs after each forward pass."""

    _step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *unused: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            assert isinstance(module, ByteLMModule)
            self.on_step(trainer, module, self._step)

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        """Called after ``step`` optimizer steps."""
        raise NotImplementedError

    def columns(self) -> dict[str, float | None]:
        """The figures of the last :meth:`on_step`, for that step's row of metrics.csv."""
        return {}


class Spikes(StepCallback):
    """Applies the module's spike policy before any other callback sees the step."""

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        module.check_spikes(wait=False)


def is_due(step: int, every: int) -> bool:
    """Whether something done after every ``every`` steps (0: never) is due after ``step``."""
    return every > 0 and step % every == 0
