"""Deciding the end of a run by the clock."""

import sys
from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from mambabyte.runs.run_directory import write_config
from mambabyte.runtime.progress import StatusLine
from mambabyte.training.callbacks.metrics import Metrics
from mambabyte.training.callbacks.step_callback import StepCallback
from mambabyte.training.loggers import update_config
from mambabyte.training.module import ByteLMModule
from mambabyte.training.readback import AnyRank
from mambabyte.training.settings import TrainSettings
from mambabyte.training.time_budget import End, decide_end, write_end

_RECENT = 500  # steps whose median is the speed: a busy moment is shorter
_FEWEST = 3  # steps that tell the speed, as the first ones are slow


class TimeBudget(StepCallback):
    """Decides a run's last step once all but ``budget.decay_share`` of ``budget.training_seconds`` has gone,
    by the clock of rank 0, and a few steps have told the speed; does nothing once that is known."""

    _module: ByteLMModule

    def __init__(self, settings: TrainSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._recent: deque[float] = deque(maxlen=_RECENT)  # seconds of each step
        self._any_rank = AnyRank()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": list(self._recent)} if self._module.max_steps is None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._recent.extend(map(float, state_dict["seconds"]))

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        assert isinstance(module, ByteLMModule)
        self._module = module
        self._last = self._metrics.training_seconds

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        budget = self._settings.budget
        if module.max_steps is not None or budget.training_seconds is None:
            return
        now = self._metrics.training_seconds
        self._recent.append(now - self._last)
        self._last = now
        share = 1 - budget.decay_share if len(self._recent) >= _FEWEST else 1.0
        due = trainer.is_global_zero and now >= share * budget.training_seconds
        if not self._any_rank.says(trainer, step, due):
            return
        end = None
        with module.excluded_from_timing():
            if trainer.is_global_zero:
                end = decide_end(step, budget.training_seconds - now, self._recent)
                write_end(self._settings.run_dir, budget, end)
            end = trainer.strategy.broadcast(end)
            assert end is not None
            module.decide(end)
            if trainer.is_global_zero:
                self._tell(trainer, module, end)

    def _tell(self, trainer: Trainer, module: ByteLMModule, end: End) -> None:
        write_config(self._settings.run_dir, module.config)
        update_config(trainer.loggers, module.config)
        warmup, said = self._settings.optimizer.warmup_steps, ""
        if warmup > end.decay_from:  # and not refused: it depends on this machine's speed
            said = f" and never reaches its peak, since optimizer.warmup_steps={warmup:,}"
        falls = f"the learning rate falls from step {end.decay_from:,} to the last, {end.max_steps:,}"
        StatusLine.write(f"mambabyte: {falls}{said}", file=sys.stderr)
