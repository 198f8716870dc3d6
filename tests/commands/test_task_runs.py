"""Runs that learn a synthetic task: trained, stopped and resumed, measured, reported."""

from __future__ import annotations

import json
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from mambabyte.cli.main import main
from mambabyte.commands import train
from mambabyte.config.composition import config_dir
from mambabyte.reporting import compare
from mambabyte.reporting.figures import ACCURACY_FIGURE, FIGURES, draw
from mambabyte.runs.metrics_csv import ACCURACY, read_metrics
from mambabyte.runs.run import read_run
from mambabyte.runs.summary import read_summary, report
from mambabyte.training.settings import TrainSettings
from tests import driver
from tests.commands.test_resume import assert_same_end
from tests.conftest import TINY

STEPS = 60


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to copy 2 bytes, not to be changed."""
    run_dir = tmp_path_factory.mktemp("learned") / "copying"
    overrides = [
        *("experiment=copying_small", "mixer=s4d", "model.d_model=32", "model.n_layer=1"),
        *("data.tokens=2", "data.vocabulary=6", "context_length=12", "trainer.global_batch_bytes=384"),
        *(f"trainer.max_steps={STEPS}", "optimizer.learning_rate=4e-3", "optimizer.warmup_steps=20"),
        *("callbacks.validate_every=10", "callbacks.validate_bytes=600", "data.validation_bytes=1200"),
        *("trainer.accelerator=cpu", f"run_dir={run_dir}"),
    ]
    train.run(TrainSettings.compose(*overrides))
    return run_dir


def test_copying_is_learned_and_recorded(learned: Path) -> None:
    rows = [row for row in read_metrics(learned / "metrics.csv") if row[ACCURACY[0]] is not None]
    assert [row["step"] for row in rows] == list(range(10, STEPS + 1, 10))
    assert rows[0][ACCURACY[0]] < 0.7
    assert rows[-1][ACCURACY[0]] > 0.99
    assert all(row[ACCURACY[1]] <= row[ACCURACY[0]] for row in rows)
    summary = read_summary(learned, STEPS)
    figure = summary["validation"]
    assert figure["accuracy"] > 0.99 < figure["sequence_accuracy"]
    assert (figure["documents"], figure["bytes"], figure["chance"]) == (100, 200, 0.25)
    assert figure["bits_per_byte"] < 0.5
    assert summary["validation_stateful"] is None and "sample" not in summary
    assert f"validation: {100 * figure['accuracy']:.2f} % of 200 answers right" in report(summary)
    assert "sample" not in report(summary)
    assert Path(summary["loss_curve"]).read_bytes().startswith(b"\x89PNG")


def test_eval_gives_the_figure_of_training_and_that_of_other_lengths(learned: Path, capsys) -> None:
    assert main(["eval", "--bpb", "--json", f"ckpt={learned}", "device=cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    then = read_summary(learned, STEPS)["validation"]
    for key in ("accuracy", "sequence_accuracy", "bytes", "documents", "data_fingerprint", "protocol"):
        assert found[key] == then[key], key
    assert main(["eval", "--lengths", f"ckpt={learned}", "device=cpu", "furthest=64", "max_bytes=600"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("validation: ") and "of 100 answers right" in out, "50 sequences of 12 bytes"
    assert "answers right, by length (trained at 12; guessing: 25.00 %)" in out
    assert (learned / "evaluation" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert main(["eval", "--bpb", f"ckpt={learned}", "device=cpu", "context_length=20", "split=test"]) == 0
    assert capsys.readouterr().out.startswith("test: ")


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["--bpb", "--noise"], "its metrics are bpb and lengths, and not noise"),
        (["--bpb", "protocol=stateful"], "leave out protocol=stateful"),
        (["--bpb", "split=train"], "measure split=validation or split=test"),
        (["--bpb", "context_length=3"], "context_length=3 is too short for this task"),
        (["--bpb", "furthest=99"], "furthest= belongs to the metric lengths"),
        (["--lengths", "furthest=7"], "furthest=7 is less than the shortest sequences measured"),
        (["--bpb", "stride=4"], "sequences do not overlap"),
        (["--bpb", "data=stdlib", "furthest=99"], "furthest= is how long a task's sequences get"),
    ],
    ids=["noise", "protocol", "split", "length", "no lengths", "no length", "stride", "furthest"],
)
def test_eval_refuses_what_means_nothing(typed: list[str], sentence: str, learned: Path, tmp_path, capsys):
    assert main(["eval", *typed, f"ckpt={learned}", "device=cpu", f"out={tmp_path}"]) == 1
    assert sentence in capsys.readouterr().err


def test_the_report_shows_accuracy_and_says_what_the_bits_cover(learned: Path, capsys) -> None:
    accuracy = read_summary(learned, STEPS)["validation"]["accuracy"]
    assert main(["report", str(learned), "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "200 answers in 100 sequences of 12 bytes (CopyingTask " in out
    assert "| run | accuracy | all right | bits/answer |" in out
    assert f"| {100 * accuracy:.2f} % |" in out and "bits/byte" not in out
    assert "bits/answer covers the answers and no other byte" in out
    assert main(["report", str(learned), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert (record["accuracy"], record["protocol"][:12]) == (accuracy, "name answers")
    comparisons, _ = compare([read_run(learned)])
    (axes,) = draw(ACCURACY_FIGURE, comparisons).axes
    curve = next(line for line in axes.lines if line.get_marker() == ".")
    assert len(curve.get_xdata()) == STEPS // 10 and axes.get_ylabel() == "share of answers right"
    assert draw(FIGURES[0], comparisons).axes[0].get_ylabel() == "bits per answer"


def test_a_run_ended_twice_ends_with_the_same_bits(tmp_path: Path) -> None:
    runs = driver.Runs(tmp_path)

    def run(name: str, **end) -> int:
        places = [f"run_dir={tmp_path / name}", "callbacks.checkpoint_every=4", "callbacks.sample_every=0"]
        task = ["data=selective_copying", "data.tokens=4", "data.validation_bytes=640"]
        return runs("train", *TINY, *task, *places, log=tmp_path / f"{name}.log", **end).code

    try:
        assert run("whole") == 0
        assert run("parts", step=2, number=SIGTERM) == 75
        assert run("parts", step=9, number=SIGKILL) == -SIGKILL
        assert run("parts") == 0
    finally:
        runs.close()
    assert_same_end(tmp_path, "whole", "parts")


def test_the_experiments_have_the_papers_set_ups(configure) -> None:
    copying = configure("train", "experiment=selective_copying")
    assert (copying.context_length, copying.data.source["tokens"]) == (4096 + 16, 16)
    assert copying.data.source["vocabulary"] == 16
    assert (copying.trainer.max_steps, copying.trainer.global_batch_size(4112)) == (400_000, 64)
    rates = [copying.optimizer.learning_rate_at(step, 400_000) for step in (0, 399_999)]
    assert rates == [1e-4, 1e-4]
    heads = configure("train", "experiment=induction_heads")
    assert (heads.context_length, heads.data.source["vocabulary"]) == (256, 16)
    assert (heads.trainer.max_steps, heads.trainer.global_batch_size(256)) == (204_800, 8)
    assert heads.optimizer.learning_rate_at(0, 204_800) == 1e-3
    for each in (copying, heads):
        assert (each.model.d_model, each.model.n_layer) == (64, 2)
    tasks = {path.stem for path in (config_dir() / "data").glob("*.yaml")}
    assert tasks >= {"copying", "selective_copying", "induction_heads"}
