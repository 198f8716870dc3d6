"""Where metrics go besides metrics.csv."""

from __future__ import annotations

import csv

import pytest

from mambabyte.errors import UserError
from mambabyte.training import loggers
from mambabyte.training.settings import TrainSettings


@pytest.mark.parametrize(
    ("chosen", "built"),
    [
        ("csv", []),
        ("wandb", ["wandb"]),
        ("[csv,tensorboard]", ["tensorboard"]),
        ("[wandb,tensorboard]", ["tensorboard", "wandb"]),
    ],
)
def test_every_logger_that_is_chosen_is_built(monkeypatch, chosen, built):
    monkeypatch.setattr(loggers, "TensorBoardLogger", lambda *_, name, **__: name)
    monkeypatch.setattr(loggers, "_wandb", lambda *_: "wandb")
    assert loggers.build_loggers(TrainSettings.compose(f"logger={chosen}"), {}) == built


def test_a_project_without_wandb_and_an_unknown_logger_are_refused():
    with pytest.raises(UserError, match=r"logger\.project and logger\.entity are of logger=wandb"):
        TrainSettings.compose("+logger.project=mine")
    with pytest.raises(UserError, match="there is no logger 'mlflow'; choose from csv, tensorboard, wandb"):
        TrainSettings.compose("logger=mlflow")


def test_a_damaged_wandb_id_is_named(tmp_path):
    settings = TrainSettings.compose("logger=wandb", f"run_dir={tmp_path}")
    (tmp_path / "wandb_id").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"wandb_id' cannot be read .* remove it"):
        loggers.build_loggers(settings, {})


def test_both_loggers_receive_what_metrics_csv_holds(start, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it keeps the environment in which this process first used it
    run_dir = start("both", "logger=[wandb,tensorboard]")
    summary = dict(wandb.run.summary)
    wandb.teardown()
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    events = accumulator.EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    columns = [name for name in rows[-1] if rows[-1][name] and name != "step"]
    assert {"bits_per_byte", "validation_bits_per_byte", "learning_rate", "gradient_norm"} <= set(columns)
    for name in columns:
        written = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx(written, rel=1e-6), "tensorboard keeps float32"
        assert summary[name] == pytest.approx(written[12])
    assert summary["trainer/global_step"] == 12
