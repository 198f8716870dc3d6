"""A few real optimizer steps, in memory, to know how long the many of a run will take."""

from __future__ import annotations

import gc
import signal
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mambabyte.config.settings import to_plain
from mambabyte.data import ByteDataModule
from mambabyte.errors import UserError
from mambabyte.runtime.memory import PeakMemory
from mambabyte.runtime.signals import STOP_SIGNALS
from mambabyte.training.activation_checkpointing import checkpoint_activations
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning.memory_estimate import MemoryBudget
from mambabyte.training.settings import TrainSettings
from mambabyte.training.trainer import build_trainer

_WARM_UP = 2
_LONGEST = 60.0  # seconds, after which no further step begins


@dataclass(frozen=True)
class StepTiming:
    """What the steps took on one device with its share of the global batch, without what passes between
    devices.

    peak_memory_bytes: of the device, or this process's resident memory; None where the system does not tell.
    """

    seconds_per_step: float
    peak_memory_bytes: int | None


def time_steps(settings: TrainSettings, steps: int = 10) -> StepTiming:
    """Train a fresh model for a few steps on the run's first windows, on one device, and forget it.

    The first two steps are to warm up; the median of the others counts. A step of many micro-batches is
    worked out from steps of two, and after a minute no further step begins. Nothing is written but the
    corpus, which training would prepare too, and the global random generators are left as they were.

    Args:
        settings: their budget solved, their devices counted.

    Raises:
        UserError: the data or the settings will not do; FSDP's model does not fit one device.
        torch.OutOfMemoryError: a step does not fit the GPU.
    """
    if not fits_one_device(settings):
        raise UserError(
            "steps are tried on one device, which does not hold the whole of this model: set "
            "trainer.micro_batch_size and trainer.max_steps to numbers"
        )
    try:
        return _take_steps(settings, steps)
    finally:
        gc.collect()  # a trainer and its model hold each other
        torch.cuda.empty_cache()


def fits_one_device(settings: TrainSettings) -> bool:
    """Whether steps can be tried: not where only FSDP's many devices together hold the model."""
    trainer = settings.trainer
    if trainer.world_size == 1 or trainer.strategy != "fsdp":
        return True
    alone = replace(settings, trainer=replace(trainer, devices=1, num_nodes=1))
    return MemoryBudget.of(alone).fits(int(trainer.micro_batch_size))


def _take_steps(settings: TrainSettings, steps: int) -> StepTiming:
    context_length, micro_batch_size = settings.context_length, int(settings.trainer.micro_batch_size)
    accumulation = settings.trainer.accumulation(context_length, settings.trainer.world_size)
    passes = min(accumulation, 2)
    windows = passes * micro_batch_size
    share = replace(
        settings.trainer,
        max_steps=steps,
        devices=1,
        num_nodes=1,
        global_batch_bytes=windows * context_length,
    )
    data = ByteDataModule(settings.data, context_length, micro_batch_size, windows, settings.seed)
    stopwatch = Stopwatch()
    trainer = build_trainer(share, context_length, settings.run_dir, [stopwatch], None)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = settings.model.build()
        if share.activation_checkpointing:
            checkpoint_activations(model)
        module = ByteLMModule(model, settings.optimizer, steps, share.gradient_clip, to_plain(settings))
        trainer.fit(module, datamodule=data)
    return StepTiming(stopwatch.seconds_per_step(accumulation - passes), stopwatch.peak_memory_bytes)


class Stopwatch(Callback):
    """Times every forward and backward pass, from the end of the one before: fetching its batch counts."""

    def __init__(self) -> None:
        self.peak_memory_bytes: int | None = None
        self._passes: list[tuple[float, bool]] = []  # seconds, and whether the optimizer stepped
        self._step = 0
        self._previous: dict[int, Any] = {}

    def seconds_per_step(self, further_passes: int) -> float:
        """The median step, and so many passes more than were taken."""
        steps: list[list[float]] = [[]]
        for seconds, stepped in self._passes:
            steps[-1].append(seconds)
            if stepped:
                steps.append([])
        timed = steps[:-1][min(_WARM_UP, len(steps) - 2) :]
        step = statistics.median(sum(passes) for passes in timed)
        return step + further_passes * statistics.median(passes[0] for passes in timed)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._previous[number])  # Lightning's would end with exit code 0
        self._memory = PeakMemory(trainer.strategy.root_device)
        self._begun = self._last = self._now(trainer)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *unused: Any) -> None:
        now = self._now(trainer)
        stepped = trainer.global_step != self._step
        self._passes.append((now - self._last, stepped))
        self._step, self._last = trainer.global_step, now
        if stepped and self._step > 1 and now - self._begun > _LONGEST:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.peak_memory_bytes = self._memory.bytes()

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "fit")

    @staticmethod
    def _now(trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        return time.perf_counter()
