"""What is read from run directories, and which of them are found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from mambabyte.errors import UserError
from mambabyte.models import LSTMConfig
from mambabyte.runs.run import find_runs, read_run


def test_a_run_is_read_from_what_it_records(write_run) -> None:
    run = read_run(write_run("a", bits_per_byte=2.5))
    model = LSTMConfig(d_model=16, n_layer=1).build()
    assert (run.kind, run.parameters) == ("LSTM", model.num_parameters())
    assert run.inference_flops_per_byte == model.flops_per_byte(32).inference
    assert run.training_flops_per_byte == 3 * run.inference_flops_per_byte
    assert (run.step, run.bytes_trained, run.seconds) == (10, 2560, 5.0)
    assert run.bytes_per_second == 500, "the median: the first, slow row does not count"
    assert run.peak_memory_bytes == 10_000
    assert run.validation.bits_per_byte == 2.5
    assert run.stateful.bits_per_byte == 2.25
    assert run.curve == [(4 * 256, 2.0, 6.0), (8 * 256, 4.0, 4.0)]
    assert run.training == [(step * 256, step / 2, 8 - step / 2) for step in range(2, 11, 2)]
    assert run.state == "complete"


def test_a_record_from_before_memory_was_recorded(write_run) -> None:
    metrics = write_run("old") / "metrics.csv"
    header, *lines = [line.split(",") for line in metrics.read_text().splitlines()]
    kept = [place for place, name in enumerate(header) if name != "peak_memory_bytes"]
    metrics.write_text("".join(",".join(line[i] for i in kept) + "\n" for line in (header, *lines)))
    assert read_run(metrics.parent).peak_memory_bytes is None
    assert read_run(metrics.parent).bytes_per_second == 500


@pytest.mark.parametrize(
    ("steps", "bits_per_byte", "state"),
    [
        (4, None, "not complete: step 4 of 10"),
        (4, 2.5, "not complete: step 4 of 10"),  # complete once, and then given more steps
        (0, None, "not complete: step 0 of 10"),
        (10, None, "trained, not measured"),
    ],
)
def test_a_run_that_is_not_complete_has_no_figure(write_run, steps, bits_per_byte, state) -> None:
    run = read_run(write_run("part", steps=steps, bits_per_byte=bits_per_byte))
    assert run.state == state
    assert run.validation is None
    assert run.stateful is None
    assert run.bytes_trained == steps * 256


def test_a_run_by_the_clock_is_told_by_its_time_until_its_end_is_decided(write_run) -> None:
    path = write_run("timed", steps=4, bits_per_byte=2.5) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["budget"] = {"training_seconds": 10.0}
    config["trainer"]["max_steps"] = None
    path.write_text(yaml.safe_dump(config))
    run = read_run(path.parent)
    assert run.state == "not complete: 2 s of 10 s"
    assert (run.max_steps, run.training_seconds, run.validation) == (None, 10.0, None)
    config["trainer"]["max_steps"], config["optimizer"]["decay_from"] = 4, 3
    path.write_text(yaml.safe_dump(config))
    assert read_run(path.parent).state == "complete"
    config["budget"] = {}
    config["trainer"]["max_steps"] = None
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="is damaged or of another version"):
        read_run(path.parent)


def test_a_complete_run_that_was_not_measured_has_no_figure(write_run) -> None:
    run_dir = write_run("unmeasured")
    (run_dir / "summary.json").write_text('{"step": 10, "validation": null, "validation_stateful": null}')
    run = read_run(run_dir)
    assert (run.validation, run.stateful, run.device) == (None, None, None)
    assert run.state == "trained, not measured"


def test_folders_sweeps_and_globs(write_run, monkeypatch) -> None:
    jobs = [write_run("sweep/seed=0"), write_run("sweep/seed=1")]
    alone = write_run("alone")
    (alone / "wandb" / "offline" / "files").mkdir(parents=True)
    (alone / "wandb" / "offline" / "files" / "config.yaml").write_text("wandb_version: 1")
    monkeypatch.chdir(alone.parents[1])
    assert find_runs(["runs/sweep"]) == jobs
    assert find_runs(["runs"]) == [alone, *jobs]
    assert find_runs(["runs/sweep/seed=*"]) == jobs
    assert find_runs([str(alone), "runs/al*", "runs/sweep/seed=1"]) == [alone, jobs[1]], "each once"


def test_a_name_that_looks_like_a_glob_is_taken_as_it_is(write_run) -> None:
    job = write_run("betas=[0.9,0.95]")
    assert find_runs([str(job)]) == [job]


@pytest.mark.parametrize("path", ["nowhere", "empty", "em*"])
def test_where_no_run_is(tmp_path: Path, monkeypatch, path) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run at"):
        find_runs([path])


def test_a_model_of_ones_own_is_called_that(write_run) -> None:
    run_dir = write_run("mine")
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(text.replace("mambabyte.models.LSTMConfig", "my_package.MyConfig"))
    with pytest.raises(
        UserError, match=r"mine' trained my_package.MyConfig, a model that is not mamba"
    ) as fault:
        read_run(run_dir)
    assert "damaged" not in str(fault.value)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.yaml", "seed: [", "config.yaml' is damaged"),
        ("config.yaml", "seed: 0", "it has no 'model'"),
        ("config.yaml", "model: {_target_: mambabyte.models.Other}", "does not have"),
        ("config.yaml", "model: [1]", "config.yaml' is damaged"),
        ("metrics.csv", "step,bytes\n1,one\n", "metrics.csv' is damaged"),
        ("summary.json", '{"step": 10', "summary.json' is damaged"),
        ("summary.json", '{"step": 10}', "it has no 'validation'"),
    ],
)
def test_a_damaged_run_is_named_in_one_sentence(write_run, file, content, reason) -> None:
    run_dir = write_run("damaged")
    (run_dir / file).write_text(content)
    with pytest.raises(UserError) as fault:
        read_run(run_dir)
    assert reason in str(fault.value)
    assert str(run_dir) in str(fault.value)
    assert os.linesep not in str(fault.value)
