"""Checkpoints during training."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer

from mambabyte.checkpoints import read, remove
from mambabyte.checkpoints.paths import step_file, step_files
from mambabyte.checkpoints.writing import point_last_at, write
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.module import ByteLMModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically and with a checksum."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, *_: Any, **__: Any) -> None:
        write(checkpoint, path)

    def load_checkpoint(self, path: str | Path, *options: Any, **more: Any) -> dict[str, Any]:
        # a sharded checkpoint is joined, so that any strategy can resume from it
        return read(path).content if Path(path).is_dir() else super().load_checkpoint(path, *options, **more)


class Checkpoints(StepCallback):
    """Saves after every ``every`` steps, after the last one, and on demand; keeps the newest ``kept``."""

    def __init__(self, folder: Path, every: int, kept: int) -> None:
        self._folder = folder
        self._every = every
        self._kept = kept
        self._saved_step: int | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        if trainer.is_global_zero and self._folder.is_dir():
            for leftover in self._folder.glob("*.temporary"):
                remove(leftover)  # from a process that was killed while writing

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        if is_due(step, self._every) or step == trainer.max_steps:
            self.save(trainer, module)

    def save(self, trainer: Trainer, module: ByteLMModule) -> None:
        """Save the current optimizer step, unless it has been saved. Every rank must call this."""
        step = trainer.global_step
        if step == self._saved_step:
            return
        with module.excluded_from_timing():
            module.check_spikes(wait=True)
            path = step_file(self._folder, step)
            trainer.save_checkpoint(path)
            self._saved_step = step
            if trainer.is_global_zero:
                point_last_at(path)
                # files of later steps are damaged: the run resumed before them and will replace them
                files = step_files(self._folder)
                for old in files[: max(0, files.index(path) + 1 - self._kept)]:
                    remove(old)
