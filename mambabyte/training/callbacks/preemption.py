"""Stopping by a signal without losing a step."""

import signal
import sys
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from mambabyte.runtime.signals import STOP_SIGNALS, end_process
from mambabyte.training.callbacks.checkpoints import Checkpoints
from mambabyte.training.callbacks.step_callback import StepCallback
from mambabyte.training.module import ByteLMModule
from mambabyte.training.readback import LateReader


class Interruption(StepCallback):
    """After a stop signal, saves at the next optimizer step and stops; a second one ends it all at once. On
    several GPUs it may be the step after the next.

    Lightning's own handler stops at any forward pass, saves nothing and leaves with exit code 0.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.stopped = False
        self._checkpoints = checkpoints
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._of_all_ranks = LateReader()

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        # before Lightning puts its own in their place
        self._previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        if self._requested(trainer, step) and step < trainer.max_steps:
            self._checkpoints.save(trainer, module)
            self.stopped = True
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "fit")

    def _requested(self, trainer: Trainer, step: int) -> bool:
        if trainer.world_size == 1:
            return self._signal is not None
        # signals reach the ranks at different moments: all must stop at the same step
        mine = torch.tensor([float(self._signal is not None)], device=trainer.strategy.root_device)
        self._of_all_ranks.send(step, trainer.strategy.reduce(mine, reduce_op="sum"))
        return any(signalled for _, [signalled] in self._of_all_ranks.arrived())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            end_process(number, frame)
        self._signal = number
        print("\nstopping after this step (once more: at once, without saving)", file=sys.stderr, flush=True)
