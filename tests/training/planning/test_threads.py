"""trainer.threads: a number, or the faster one of one and all, decided once for a run."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning import autotune
from mambabyte.training.planning.step_timing import StepTiming
from mambabyte.training.threads import using_threads

AUTO = "trainer.threads=auto"


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had four, so that no machine is too small."""
    monkeypatch.setattr(autotune, "threads_of_each", lambda processes: 4)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads that PyTorch has in each micro-batch."""
    original, counts = ByteLMModule.training_step, []

    def training_step(self, batch, index):
        counts.append(torch.get_num_threads())
        return original(self, batch, index)

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    return counts


def speeds(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> list[int]:
    """What trying a number of threads says from then on; returns the numbers tried."""
    tried: list[int] = []

    def answer(settings, steps=10) -> StepTiming:
        tried.append(settings.trainer.threads)
        return StepTiming(seconds[settings.trainer.threads], None)

    monkeypatch.setattr(autotune, "time_steps", answer)
    return tried


@pytest.mark.parametrize(("one", "every", "chosen"), [(1.0, 3.0, 1), (3.0, 1.0, 4)])
def test_the_faster_is_taken_and_said(
    one: float, every: float, chosen: int, configure, four_threads, monkeypatch, capsys, tmp_path
) -> None:
    assert speeds(monkeypatch, {1: one, 4: every}) == []
    settings = configure("train", AUTO, "trainer.accelerator=cpu", f"run_dir={tmp_path}/run")
    assert autotune.with_measurements(settings).trainer.threads == chosen
    said = capsys.readouterr().err
    assert f"mambabyte: 1 thread: {one:.3g} s a step\nmambabyte: 4 threads: {every:.3g} s a step\n" in said
    assert f"mambabyte: trainer.threads={chosen}\n" in said


def test_a_run_keeps_the_number_that_was_chosen(start, used, four_threads, monkeypatch, capsys) -> None:
    speeds(monkeypatch, {1: 3.0, 4: 1.0})
    run_dir = start("auto", AUTO, "trainer.max_steps=3")
    speeds(monkeypatch, {})  # would raise
    start("auto", AUTO, "trainer.max_steps=4")
    assert set(used) == {4}
    assert "trainer.threads (" not in capsys.readouterr().err
    assert checkpoints.read(run_dir).config["trainer"]["threads"] == 4
    assert json.loads((run_dir / "measured.json").read_text())["threads"]["answer"] == 4


def test_of_one_thread_there_is_nothing_to_try(configure, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(autotune, "threads_of_each", lambda processes: 1)
    tried = speeds(monkeypatch, {})
    settings = configure("train", AUTO, "trainer.accelerator=cpu", f"run_dir={tmp_path}/run")
    assert autotune.with_measurements(settings, keep=False).trainer.threads == 1
    assert not tried


def test_a_number_holds_while_the_run_trains(start, used) -> None:
    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    start("two", "trainer.threads=2", "trainer.max_steps=2")
    assert set(used) == {2}
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == before
    used.clear()
    start("none", "trainer.max_steps=2")
    assert set(used) == {before[0]}


def test_threads_are_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    with suppress(ValueError), using_threads(before + 1):
        assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (before + 1, str(before + 1))
        raise ValueError
    assert torch.get_num_threads() == before and "OMP_NUM_THREADS" not in os.environ


def test_auto_really_measures(start, monkeypatch, capsys) -> None:
    torch.set_num_threads(2)
    try:
        start("measured", AUTO, "trainer.max_steps=2", "trainer.micro_batch_size=8")
    finally:
        torch.set_num_threads(1)
    said = capsys.readouterr().err
    assert "1 thread: " in said and "2 threads: " in said and "trainer.threads=" in said


@pytest.mark.parametrize(
    "damaged",
    [
        *([], 3, {"threads": []}, {"threads": {"question": {}}}, {"threads": {"answer": "two"}}),
        *({"threads": {"answer": 0}}, {"threads": {"answer": True}}, {"threads": {"answer": 2.5}}),
    ],
)
def test_a_damaged_record_is_named_and_kept(configure, four_threads, damaged, tmp_path: Path) -> None:
    settings = configure("train", AUTO, "trainer.accelerator=cpu", f"run_dir={tmp_path}")
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"cannot be read \(it .*\); remove it to measure anew") as refusal:
        autotune.with_measurements(settings)
    assert str(path) in str(refusal.value)
    assert json.loads(path.read_text()) == damaged
