"""A size that does not fit leaves the memory to the next one that is tried."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mambabyte.models import MambaByte
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning import autotune
from mambabyte.training.planning.autotune import with_measurements
from mambabyte.training.planning.memory_estimate import MemoryBudget
from mambabyte.training.planning.step_timing import StepTiming, time_steps


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A device that fits two windows at a time; how many models were held when its memory was released."""
    models: list[weakref.ref] = []
    held: list[int] = []  # by the last call of each trial, for Lightning calls it too
    original, build = ByteLMModule.training_step, MambaByte.__init__

    def training_step(self: ByteLMModule, batch: Any, index: int) -> torch.Tensor:
        if len(batch["bytes"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, batch, index)

    def init(self: MambaByte, config: Any) -> None:
        build(self, config)
        if next(self.parameters()).device.type != "meta":
            models.append(weakref.ref(self))

    def empty_cache() -> None:
        held[-1] = sum(model() is not None for model in models)

    def trial(settings: Any, steps: int) -> StepTiming:
        held.append(-1)
        return time_steps(settings, steps)

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    monkeypatch.setattr(MambaByte, "__init__", init)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(autotune, "time_steps", trial)
    of = MemoryBudget.of

    def on_a_gpu(settings: Any) -> MemoryBudget:
        memory = of(settings)
        memory.device = torch.device("cuda")
        monkeypatch.setattr(memory, "fits", lambda size: True)
        return memory

    monkeypatch.setattr(autotune.MemoryBudget, "of", on_a_gpu)
    return held


def test_the_largest_size_that_runs_is_found(
    gpu: list[int], start: Callable, configure: Callable, corpus, tmp_path
):
    settings = configure(
        "train",
        "model.d_model=16",
        "model.n_layer=1",
        "context_length=32",
        "trainer.global_batch_bytes=256",
        "trainer.micro_batch_size=auto",
        "trainer.accelerator=cpu",
        "trainer.precision=fp32",
        "trainer.max_steps=2",
        "optimizer.warmup_steps=0",
        "data=files",
        f"data.path={corpus}",
        f"data.folder={tmp_path}/prepared",
        f"run_dir={tmp_path}/run",
    )
    assert with_measurements(settings, keep=False).trainer.micro_batch_size == 2
    # of 8, 4 and 2 windows: nothing of a step that failed was held any more
    assert gpu == [0, 0, 0]
