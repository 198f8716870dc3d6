"""mambabyte train: one run in its directory. The same command again resumes it, or says it is complete."""

from __future__ import annotations

import os
from typing import Any

from mambabyte.commands import DATA, JSON, Command, Flag
from mambabyte.config.settings import fill
from mambabyte.data.settings import DataSettings
from mambabyte.runtime.valid_json import valid_json
from mambabyte.training.settings import TrainerSettings, TrainSettings


def run(settings: TrainSettings) -> None:
    """Train, then print the report; with ``dry_run`` only print what training will take.

    Raises:
        UserError, Interrupted: see :func:`mambabyte.training.train.train`.
    """
    from mambabyte.runs.summary import report
    from mambabyte.training.planning.dry_run import describe, forecast
    from mambabyte.training.train import train

    result, in_words = (forecast(settings), describe) if settings.dry_run else (train(settings), report)
    if result is not None:  # of rank 0
        print(valid_json(result) if settings.json else in_words(result))


def check(values: dict[str, Any]) -> None:
    """Raise UserError about what can be known before the model's class imports torch, which takes seconds."""
    trainer = fill(TrainerSettings, values.get("trainer"))
    length, run_dir = values.get("context_length"), values.get("run_dir")
    if isinstance(length, int) and length > 0:
        trainer.global_batch_size(length)
        if "auto" not in (trainer.devices, trainer.num_nodes, trainer.micro_batch_size):
            trainer.accumulation(length, trainer.world_size)
    if isinstance(run_dir, str) and not os.path.exists(run_dir):  # a complete run reports without its data
        DataSettings.from_settings(values.get("data"), "data").check_path()


COMMAND = Command(
    "train a model: mambabyte train experiment=quickstart",
    TrainSettings,
    run,
    check=check,
    flags=(DATA, Flag("--dry-run", "only say what the run will take", "dry_run"), JSON),
)
