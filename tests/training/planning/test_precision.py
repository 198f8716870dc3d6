"""trainer.precision=auto: decided when a run begins, recorded, and kept by all who continue it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.runtime.precision import Precision
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning import autotune, plan
from mambabyte.training.planning.autotune import with_measurements
from mambabyte.training.planning.peak_flops import PeakFlops
from mambabyte.training.planning.step_timing import StepTiming
from mambabyte.training.settings import TrainerSettings, TrainSettings

AUTO = "trainer.precision=auto"
FAST = Precision("bf16", "3.1 times as fast as fp32 on this processor")
NONE = Precision("fp32", "this processor has no bf16 instructions")
SLOW = "bf16 products take 14 times as long as fp32 ones on this processor"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """machine(FAST) is what this one says from then on."""

    def install(fastest: Precision) -> None:
        for module in (autotune, plan):
            monkeypatch.setattr(module, "fastest_precision", lambda device: fastest)
        monkeypatch.setattr(plan, "slowness_of_bf16", lambda device: None if fastest.name == "bf16" else SLOW)

    return install


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precision of each micro-batch."""
    original, seen = ByteLMModule.training_step, []

    def training_step(self, batch, index):
        seen.append("bf16" if torch.is_autocast_enabled("cpu") else "fp32")
        return original(self, batch, index)

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    return seen


def announced(text: str) -> str:
    """The precision in the opening line, with its reason."""
    (line,) = (line for line in text.splitlines() if " x cpu, " in line)
    return re.search(r"1 x cpu, (.*), cpu scan$", line)[1]


def recorded(run_dir: Path) -> set[str]:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    return {values["trainer"]["precision"] for values in (config, checkpoints.read(run_dir).config)}


def test_auto_is_the_default() -> None:
    for experiment in ("quickstart", "parameter_matched", "time_matched", "compute_matched"):
        assert TrainSettings.compose(f"experiment={experiment}").trainer.precision == "auto"
    assert TrainerSettings(max_steps=1, global_batch_bytes=8, micro_batch_size=1).precision == "auto"


@pytest.mark.parametrize("fastest", [FAST, NONE], ids=["fast", "none"])
def test_a_run_trains_in_the_faster_one_and_says_why(fastest, start, machine, computed, capsys) -> None:
    machine(fastest)
    run_dir = start("auto", AUTO, "trainer.max_steps=2")
    assert set(computed) == recorded(run_dir) == {fastest.name}
    err = capsys.readouterr().err
    assert announced(err) == f"{fastest.name} ({fastest.reason})"
    assert SLOW not in err
    assert not (run_dir / "measured.json").exists(), "nobody waits for it"


@pytest.mark.parametrize(("begun", "then"), [(FAST, NONE), (NONE, FAST)], ids=["bf16", "fp32"])
def test_a_run_keeps_its_precision_on_another_machine(begun, then, start, machine, computed, capsys) -> None:
    machine(begun)
    start("moved", AUTO, "trainer.max_steps=2")
    machine(then)
    capsys.readouterr()
    run_dir = start("moved", AUTO, "trainer.max_steps=4")
    assert set(computed) == recorded(run_dir) == {begun.name}
    err = capsys.readouterr().err
    assert announced(err) == f"{begun.name} (as the run began)"
    assert (f"mambabyte: {SLOW}: a new run takes the faster with" in err) is (begun is FAST)
    assert "trainer.precision (" not in err, "nothing has changed"


def test_auto_continues_what_was_set_and_another_precision_is_refused(start, machine, capsys) -> None:
    machine(NONE)
    start("set", "trainer.precision=bf16", "trainer.max_steps=2")
    err = capsys.readouterr().err
    assert announced(err) == "bf16", "no reason but the user's"
    assert err.count(SLOW) == 1
    assert recorded(start("set", AUTO, "trainer.max_steps=3")) == {"bf16"}
    with pytest.raises(UserError, match=r"trainer\.precision \(bf16 there, fp32 now\)"):
        start("set", "trainer.precision=fp32", "trainer.max_steps=4")


def test_what_a_run_has_recorded_is_read_with_care(start, machine, monkeypatch) -> None:
    machine(FAST)
    run_dir = start("damaged", AUTO, "trainer.max_steps=2")
    newest = checkpoints.read_newest(run_dir)
    newest[0].config["trainer"]["precision"] = ["bf16"]
    monkeypatch.setattr(checkpoints, "read_newest", lambda folder: newest)
    with pytest.raises(UserError, match=r"trainer\.precision \(\[bf16\] there, auto now\)"):
        start("damaged", AUTO, "trainer.max_steps=3")


def test_a_dry_run_says_it_and_measures_in_it(start, machine, capsys) -> None:
    machine(FAST)
    assert not start("dry", AUTO, "dry_run=true").exists()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("compute "))
    assert line.endswith(f"FLOP in all, in bf16 ({FAST.reason})")
    start("dry", AUTO, "dry_run=true", "json=true")
    run = json.loads(capsys.readouterr().out)
    assert (run["precision"], run["precision_reason"]) == ("bf16", FAST.reason)
    assert run["model_flops_utilization"] is None or 0 < run["model_flops_utilization"] <= 1
    machine(NONE)
    start("dry", "trainer.precision=bf16", "dry_run=true", "json=true")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["precision_reason"] is None
    assert SLOW in captured.err


def test_the_utilization_is_of_the_chosen_precision(start, machine, monkeypatch) -> None:
    asked = []

    def peak(device, precision):
        asked.append(precision)
        return PeakFlops(1e15, "measured matrix product")

    monkeypatch.setattr("mambabyte.training.callbacks.metrics.peak_flops", peak)
    machine(FAST)
    start("peak", AUTO, "trainer.max_steps=2")
    assert asked == ["bf16"]


def test_rank_zero_decides_for_all(configure, machine, waiting_rank, tmp_path: Path, capsys) -> None:
    two = [AUTO, "trainer.accelerator=cpu", "trainer.devices=2", f"run_dir={tmp_path}/run"]
    settings = configure("train", *two)
    answer = waiting_rank(lambda: with_measurements(settings).trainer.precision)
    machine(FAST)
    assert with_measurements(settings).trainer.precision == "bf16"
    machine(NONE)  # the other rank's own machine
    assert answer() == "bf16"
    assert "mambabyte: trainer.precision=bf16" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "measured.json").read_text())["precision"]["answer"] == "bf16"


@pytest.mark.parametrize("answer", ["fp16", 16, ["bf16"], None], ids=str)
def test_a_damaged_record_is_named(answer, configure, machine, tmp_path: Path) -> None:
    machine(FAST)
    (tmp_path / "measured.json").write_text(json.dumps({"precision": {"question": {}, "answer": answer}}))
    settings = configure("train", AUTO, "trainer.accelerator=cpu", "trainer.devices=2", f"run_dir={tmp_path}")
    with pytest.raises(UserError, match=r"has no valid precision\); remove it to measure anew"):
        with_measurements(settings)


def test_other_measurements_are_made_in_the_chosen_precision(configure, machine, monkeypatch, tmp_path):
    tried = []

    def time_steps(settings, steps=10) -> StepTiming:
        tried.append(settings.trainer.precision)
        return StepTiming(1.0, None)

    monkeypatch.setattr(autotune, "time_steps", time_steps)
    machine(FAST)
    settings = configure("train", AUTO, "trainer.accelerator=cpu", "trainer.micro_batch_size=auto")
    with_measurements(settings, keep=False)
    assert tried
    assert set(tried) == {"bf16"}
