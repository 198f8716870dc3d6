"""Stopping by a signal without losing a step."""

import signal
import sys
import threading
from types import FrameType

from lightning.pytorch import LightningModule, Trainer

from mambabyte.runtime.signals import STOP_SIGNALS, exit_at_once
from mambabyte.training.callbacks.checkpoints import Checkpoints
from mambabyte.training.callbacks.step_callback import StepCallback
from mambabyte.training.module import ByteLMModule
from mambabyte.training.readback import AnyRank


class Preemption(StepCallback):
    """Saves and stops at the next optimizer step after a stop signal, on several GPUs perhaps one later; a
    second signal exits at once. Lightning's handler would save nothing and exit with code 0."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.stopped = False  # whether a signal has stopped training
        self._checkpoints = checkpoints
        self._signal: int | None = None
        self._any_rank = AnyRank()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            for number in STOP_SIGNALS:  # in place of Lightning's, which restores the old ones at the end
                signal.signal(number, self._on_signal)

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        # signals reach the ranks at different times, but all must stop at the same step
        requested = self._any_rank.says(trainer, step, self._signal is not None)
        if requested and step != trainer.max_steps:
            self._checkpoints.save(trainer, module)
            self.stopped = True
            trainer.should_stop = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            exit_at_once(number, frame)
        self._signal = number
        print("\nstopping after this step (once more: at once, without saving)", file=sys.stderr, flush=True)
