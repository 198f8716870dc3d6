"""Stopping by a signal without losing a step."""

import os
import signal
import sys
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from mambabyte.training.checkpointing import Checkpoints
from mambabyte.training.module import ByteLMModule
from mambabyte.training.step_callback import StepCallback, is_due

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_RANKS_AGREE_EVERY = 10


class Interruption(StepCallback):
    """After SIGINT, SIGTERM or SIGUSR1, saves at the next optimizer step and stops; a second one ends it all.

    Lightning's own handler stops at any forward pass, saves nothing and leaves with exit code 0.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.stopped = False
        self._checkpoints = checkpoints
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        # before Lightning puts its own in their place
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        for number in _SIGNALS:
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
        if not is_due(step, _RANKS_AGREE_EVERY):
            return False
        mine = torch.tensor(int(self._signal is not None), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(mine, reduce_op="sum"))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        print("\nstopping after this step (once more: at once, without saving)", file=sys.stderr, flush=True)
