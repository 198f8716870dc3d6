"""mambabyte train: one run in its directory. The same command again resumes it, or says it is complete."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from typing import Any

from mambabyte.commands import DATA, JSON, Command, Flag
from mambabyte.config.settings import fill
from mambabyte.runs.changes import refuse_recorded_run
from mambabyte.runtime.valid_json import valid_json
from mambabyte.training.settings import SettingsButModel, TrainSettings

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # of torchrun, Lightning and srun


def run(settings: TrainSettings) -> float | None:
    """Train, then print the report; with ``dry_run`` only print what training will take.

    Returns:
        The bits per byte of the validation split, which a search minimises; None if they were not measured.

    Raises:
        UserError, Interrupted: see :func:`mambabyte.training.train.train`.
    """
    from mambabyte.runs.summary import report
    from mambabyte.training.planning.dry_run import describe, forecast
    from mambabyte.training.train import train

    result, in_words = (forecast(settings), describe) if settings.dry_run else (train(settings), report)
    if result is not None:  # of rank 0
        print(valid_json(result) if settings.json else in_words(result))
    measured = None if settings.dry_run or result is None else result["validation"]
    return None if measured is None else float(measured["bits_per_byte"])


def check(values: dict[str, Any]) -> None:
    """Raise UserError about what can be known before the model's class imports torch; then say that this
    begins, since it takes seconds."""
    known = [field.name for field in fields(SettingsButModel)]
    settings = fill(SettingsButModel, {name: values[name] for name in known if name in values})
    trainer, length = settings.trainer, settings.context_length
    trainer.global_batch_size(length)
    if "auto" not in (trainer.devices, trainer.num_nodes, trainer.micro_batch_size):
        trainer.accumulation(length, trainer.world_size)
    if os.path.exists(settings.run_dir):
        refuse_recorded_run(settings.run_dir, settings, values.get("model"))
    else:  # a complete run reports without its data
        settings.data.check_path()
    if settings.budget.training_flops is None:
        settings.check_schedule()
    if "torch" not in sys.modules and all(os.environ.get(name, "0") == "0" for name in _RANKS):
        print("mambabyte: loading PyTorch", file=sys.stderr)


CKPT = Flag(
    "--ckpt", "weights to start from, with experiment=finetune or model=of_ckpt", "ckpt", metavar="PATH"
)
COMMAND = Command(
    "train a model: mambabyte train experiment=quickstart",
    TrainSettings,
    run,
    check=check,
    flags=(CKPT, DATA, Flag("--dry-run", "only say what the run will take", "dry_run"), JSON),
)
