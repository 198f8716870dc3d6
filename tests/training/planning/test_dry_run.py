"""Before a run starts: what it will take, and the settings that are measured, once for the run."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mambabyte import checkpoints
from mambabyte.cli.main import main
from mambabyte.errors import Interrupted, UserError
from mambabyte.training.distributed.launching import resolve_devices
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning import autotune, dry_run, memory_estimate, step_timing
from mambabyte.training.planning.autotune import with_measurements
from mambabyte.training.planning.step_timing import StepTiming


@pytest.fixture
def speed(monkeypatch):
    """speed(lambda micro_batch_size: seconds) is what probing says from then on; returns the sizes probed."""

    def install(seconds_per_step) -> list[int]:
        probed: list[int] = []

        def answer(settings, steps=10) -> StepTiming:
            probed.append(settings.trainer.micro_batch_size)
            return StepTiming(seconds_per_step(settings.trainer.micro_batch_size), None)

        monkeypatch.setattr(autotune, "time_steps", answer)
        return probed

    return install


def config(run_dir: Path) -> dict:
    return checkpoints.read(run_dir).config


def test_a_dry_run_says_what_the_run_will_take_and_leaves_no_trace(start, capsys) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run_dir = start("dry", "dry_run=true")
    assert torch.equal(torch.rand(2), expected)
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()][:6] == [
        *("model", "compute", "memory", "bytes", "time", "speed")
    ]
    assert "3.1 kB in 12 steps of 256, " in out and ": fits" in out
    assert not run_dir.exists()


def test_as_json_the_figures_agree_with_each_other(start, capsys) -> None:
    assert not start("dry", "dry_run=true", "json=true", "logger=wandb").exists()
    run = json.loads(capsys.readouterr().out)
    assert run["steps"] * run["bytes_per_step"] == run["bytes"] == 12 * 256
    assert run["training_flops"] == pytest.approx(run["bytes"] * run["training_flops_per_byte"])
    assert run["training_flops_per_byte"] == 3 * run["inference_flops_per_byte"]
    assert run["memory"]["weights"] == 4 * run["parameters"]
    parts = ("weights", "gradients", "optimizer", "activations")
    assert sum(run["memory"][part] for part in parts) == run["memory"]["total"] < run["memory"]["available"]
    assert run["seconds"] == pytest.approx(12 * run["seconds_per_step"])
    assert run["epochs"] == pytest.approx(run["bytes"] / run["corpus_bytes"])
    flops = run["bytes_per_second"] * run["training_flops_per_byte"]
    assert run["model_flops_utilization"] == pytest.approx(flops / run["peak_flops"])


def test_a_dry_run_of_a_run_that_has_begun_counts_what_is_left(start, capsys) -> None:
    run_dir = start("begun", "trainer.max_steps=5", "json=true")
    assert json.loads(capsys.readouterr().out)["step"] == 5
    before = sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("*"))
    start("begun", "dry_run=true", "json=true")
    run = json.loads(capsys.readouterr().out)
    assert (run["steps"], run["steps_done"]) == (12, 5)
    assert run["seconds"] == pytest.approx(7 * run["seconds_per_step"])
    assert sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("*")) == before


def test_what_cannot_fit_is_refused_by_dry_run_and_by_train(start, monkeypatch) -> None:
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: 600_000)
    monkeypatch.setattr(
        step_timing.Trainer, "fit", lambda *a, **k: pytest.fail("nothing may be run to find out")
    )
    with pytest.raises(UserError, match=r"trainer\.activation_checkpointing=true, or lower context_length"):
        start("large", "dry_run=true")
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: 6_000)
    with pytest.raises(UserError, match="weights, gradients and optimizer state alone"):
        start("large")


def test_a_model_that_only_several_devices_hold_is_told_without_its_time(
    start, configure, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: 1000)
    settings = configure("train", "experiment=tiny", "trainer.accelerator=cpu", "trainer.devices=4")
    assert step_timing.fits_one_device(settings), "DDP's every device holds it"
    settings.trainer.strategy = "fsdp"
    assert not step_timing.fits_one_device(settings)
    monkeypatch.undo()
    for module in (dry_run, step_timing):
        monkeypatch.setattr(module, "fits_one_device", lambda settings: False)
    start("several", "dry_run=true")
    assert "time    not measured: one device does not hold" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"set trainer\.micro_batch_size and trainer\.threads to numbers"):
        start("several", "trainer.micro_batch_size=auto")
    by_clock = ["trainer.max_steps=null", "budget.training_seconds=5"]
    start("several", "dry_run=true", *by_clock)
    told = capsys.readouterr().out
    assert "bytes   as many as the time gives, in steps of 256, " in told
    assert "time    5 s; not measured: one device does not hold" in told
    start("several", "dry_run=true", "json=true", *by_clock)
    assert json.loads(capsys.readouterr().out)["steps"] is None


def test_the_steps_of_a_time_budget_are_foretold(start, monkeypatch, capsys) -> None:
    monkeypatch.setattr(dry_run, "time_steps", lambda settings: StepTiming(0.25, None))
    by_clock = ["dry_run=true", "trainer.max_steps=null", "budget.training_seconds=5"]
    assert not start("timed", *by_clock).exists()
    assert "5.1 kB in about 20 steps of 256, " in capsys.readouterr().out
    start("timed", *by_clock, "json=true")
    figures = json.loads(capsys.readouterr().out)
    assert (figures["steps"], figures["seconds"], figures["training_seconds"]) == (20, 5.0, 5.0)


def test_the_flags(tmp_path: Path, corpus, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data=files", f"data.path={corpus}", "data.windows=packed", "data.validation_fraction=0.2"]
    small = ["model.d_model=16", "model.n_layer=1", "context_length=32", "trainer.global_batch_bytes=64"]
    command = ["train", "--dry-run", "--json", "trainer.accelerator=cpu", *data, *small]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["bytes_per_step"] == 64
    assert main([*command, "-m", "seed=1,2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_step_of_many_micro_batches_is_worked_out_from_two(configure, monkeypatch) -> None:
    stopwatch = step_timing.Stopwatch()
    for step in range(6):
        slow = 100.0 if step < 2 else 0.0  # the first two steps are to warm up
        stopwatch._passes += [(slow + 1.0, False), (slow + 3.0, True)]
    assert stopwatch.seconds_per_step(0) == 4.0
    assert stopwatch.seconds_per_step(6) == 10.0


def test_an_automatic_micro_batch_is_the_fastest_that_fits_and_stays(start, speed, finished, at_stop) -> None:
    seconds = {1: 8.0, 2: 4.0, 4: 2.0, 8: 3.0}
    probed = speed(seconds.__getitem__)
    at_stop(5)
    with pytest.raises(Interrupted):
        start("auto", "trainer.micro_batch_size=auto")
    assert probed == [1, 2, 4, 8]
    probed = speed(lambda size: pytest.fail("a run that goes on does not measure again"))
    run_dir = start("auto", "trainer.micro_batch_size=auto")
    assert config(run_dir)["trainer"]["micro_batch_size"] == 4
    assert json.loads((run_dir / "measured.json").read_text())["micro_batch_size"]["answer"] == 4
    fixed = start("fixed", "trainer.micro_batch_size=4")
    ours, theirs = (checkpoints.read(path).state_dict for path in (run_dir, fixed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_no_larger_micro_batch_is_tried_on_a_cpu_after_a_minute(configure, speed, monkeypatch, tmp_path):
    overrides = ["trainer.micro_batch_size=auto", "trainer.accelerator=cpu", f"run_dir={tmp_path}/run"]
    clock = iter([0.0, 20.0, 61.0])
    monkeypatch.setattr(autotune.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(autotune._Record, "answer", lambda self, name, question, measure: measure())
    probed = speed(lambda size: 1 / size)
    cfg = configure("train", "experiment=tiny", *overrides)
    assert with_measurements(cfg, keep=False).trainer.micro_batch_size == 2
    assert probed == [1, 2]


@pytest.fixture
def at_stop(monkeypatch):
    """at_stop(5) sends SIGTERM once, in the middle of optimizer step 6."""
    import os

    def install(step: int) -> None:
        original, done = ByteLMModule.training_step, []

        def training_step(self, batch, batch_index):
            if self.global_step == step and not done:
                done.append(True)
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, batch, batch_index)

        monkeypatch.setattr(ByteLMModule, "training_step", training_step)

    return install


def test_an_automatic_micro_batch_leaves_out_what_does_not_fit(
    configure, speed, monkeypatch, tmp_path
) -> None:
    overrides = ["trainer.micro_batch_size=auto", "trainer.accelerator=cpu", f"run_dir={tmp_path}/run"]
    cfg = configure("train", "experiment=tiny", *overrides)
    speed(lambda size: 1 / size)
    assert with_measurements(cfg, keep=False).trainer.micro_batch_size == 8
    one = replace(cfg, trainer=resolve_devices(replace(cfg.trainer, micro_batch_size=1)))
    needed = memory_estimate.MemoryBudget.of(one).estimate(4).total
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: int(needed / 0.75) + 1)
    assert with_measurements(cfg, keep=False).trainer.micro_batch_size == 4
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: needed // 6)
    with pytest.raises(UserError, match="lower context_length"):
        with_measurements(cfg, keep=False)
    assert not (tmp_path / "run").exists()


def test_on_a_gpu_the_largest_that_really_runs_is_taken(configure, monkeypatch, tmp_path) -> None:
    overrides = ["trainer.micro_batch_size=auto", "trainer.accelerator=cpu", f"run_dir={tmp_path}/run"]
    cfg = configure("train", "experiment=tiny", *overrides)
    tried: list[int] = []

    def out_of_memory(settings, steps=10) -> StepTiming:
        tried.append(settings.trainer.micro_batch_size)
        if settings.trainer.micro_batch_size > 2:
            raise torch.OutOfMemoryError
        return StepTiming(1.0, None)

    monkeypatch.setattr(autotune, "time_steps", out_of_memory)
    monkeypatch.setattr(memory_estimate, "training_device", lambda accelerator: torch.device("cuda"))
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: None)
    assert with_measurements(cfg, keep=False).trainer.micro_batch_size == 2
    assert tried == [8, 4, 2]


def test_a_run_that_does_not_belong_there_leaves_the_answers_alone(start, speed) -> None:
    speed(lambda size: 1.0)
    run_dir = start("taken", "trainer.micro_batch_size=auto")
    before = (run_dir / "measured.json").read_bytes()
    with pytest.raises(UserError, match=r"model\.d_model"):
        start("taken", "trainer.micro_batch_size=auto", "model.d_model=16")
    assert (run_dir / "measured.json").read_bytes() == before


def test_other_ranks_wait_for_what_rank_zero_measures(
    configure, speed, waiting_rank, monkeypatch, tmp_path
) -> None:
    speed({1: 8.0, 2: 4.0, 4: 2.0, 8: 3.0}.__getitem__)
    overrides = ["trainer.micro_batch_size=auto", "trainer.accelerator=cpu", f"run_dir={tmp_path}/run"]
    cfg = configure("train", "experiment=tiny", *overrides)
    first = replace(cfg, context_length=128)
    with_measurements(first)  # an answer to another question is not theirs
    answer = waiting_rank(lambda: with_measurements(cfg).trainer.micro_batch_size)
    with_measurements(cfg)
    assert answer() == 4
    monkeypatch.setattr(autotune, "is_main_process", lambda: False)
    monkeypatch.setattr(autotune, "LONGEST_WAIT", 0.1)
    cfg.context_length = 64
    with pytest.raises(UserError, match="all nodes share"):
        with_measurements(cfg)
