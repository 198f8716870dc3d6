"""A few real optimizer steps, in memory, to predict how long a run will take."""

from __future__ import annotations

import gc
import signal
import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mambabyte.config.settings import to_plain
from mambabyte.data import ByteDataModule
from mambabyte.errors import UserError
from mambabyte.runtime.devices import synchronized_clock
from mambabyte.runtime.memory import PeakMemory
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning.memory_estimate import MemoryBudget
from mambabyte.training.settings import TrainSettings
from mambabyte.training.threads import using_threads
from mambabyte.training.trainer import build_trainer

_WARM_UP = 2
_LONGEST = 60.0  # seconds after which no further step begins


@dataclass(frozen=True)
class StepTiming:
    """What steps took on one device with its share of the global batch, communication excluded.

    Attributes:
        peak_memory_bytes: of the GPU, otherwise of this process; None if the system does not report it.
    """

    seconds_per_step: float
    peak_memory_bytes: int | None


def time_steps(settings: TrainSettings, steps: int = 10) -> StepTiming:
    """Train a fresh model for a few steps on the run's first windows, on one device, and discard it.

    The first two steps are warm-up; the median of the others counts. A step of many micro-batches is
    extrapolated from steps of two, and after a minute no further step begins. Nothing is written but the
    corpus, which training would prepare too, and the global random generators keep their state.

    Args:
        settings: with solved budget and resolved devices.

    Raises:
        UserError: the data or settings are faulty, or only several devices together hold the model.
        torch.OutOfMemoryError: a step does not fit the GPU.
    """
    if not fits_one_device(settings):
        raise UserError(
            "steps are tried on one device, which does not hold the whole of this model: set "
            "trainer.micro_batch_size and trainer.threads to numbers"
        )
    timing, fault = None, ""
    try:
        timing = _take_steps(settings, steps)
    except torch.OutOfMemoryError as error:
        fault = str(error)  # the error itself holds the frames of the step, and these the model
    gc.collect()  # a trainer and its model hold each other
    torch.cuda.empty_cache()
    if timing is None:
        raise torch.OutOfMemoryError(fault)
    return timing


def fits_one_device(settings: TrainSettings) -> bool:
    """Whether steps can be timed: not if only several FSDP devices together hold the model."""
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
    share: dict[str, Any] = {"devices": 1, "num_nodes": 1, "global_batch_bytes": windows * context_length}
    settings = replace(settings, trainer=replace(settings.trainer, max_steps=steps, **share))
    data = ByteDataModule(settings.data, context_length, micro_batch_size, windows, settings.seed)
    stopwatch = Stopwatch()
    trainer = build_trainer(settings, [stopwatch], [])
    with torch.random.fork_rng(), using_threads(settings.trainer.threads):
        torch.manual_seed(settings.seed)
        trainer.fit(ByteLMModule(settings, to_plain(settings)), datamodule=data)
    return StepTiming(stopwatch.seconds_per_step(accumulation - passes), stopwatch.peak_memory_bytes)


class Stopwatch(Callback):
    """Times every forward and backward pass from the end of the previous one, so with fetching its batch."""

    def __init__(self) -> None:
        self.peak_memory_bytes: int | None = None
        self._passes: list[tuple[float, bool]] = []  # seconds, and whether the optimizer stepped
        self._step = 0

    def seconds_per_step(self, further_passes: int) -> float:
        """The median time of a step with ``further_passes`` more passes than the timed steps had."""
        steps: list[list[float]] = [[]]
        for seconds, stepped in self._passes:
            steps[-1].append(seconds)
            if stepped:
                steps.append([])
        timed = steps[:-1][min(_WARM_UP, len(steps) - 2) :]
        step = statistics.median(sum(passes) for passes in timed)
        return step + further_passes * statistics.median(passes[0] for passes in timed)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._on_sigterm = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._on_sigterm)  # Lightning's would end with exit code 0
        self._memory = PeakMemory(trainer.strategy.root_device)
        self._begun = self._last = synchronized_clock(trainer.strategy.root_device)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *unused: Any) -> None:
        now = synchronized_clock(trainer.strategy.root_device)
        stepped = trainer.global_step != self._step
        self._passes.append((now - self._last, stepped))
        self._step, self._last = trainer.global_step, now
        if stepped and self._step > 1 and now - self._begun > _LONGEST:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.peak_memory_bytes = self._memory.bytes()
