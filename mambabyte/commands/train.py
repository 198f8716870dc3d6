"""mambabyte train: one run in its directory. The same command again resumes it, or says it is complete."""

from __future__ import annotations

from mambabyte.commands import JSON, Command, Flag
from mambabyte.runtime.valid_json import valid_json
from mambabyte.training.settings import TrainSettings


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


COMMAND = Command(
    "train a model: mambabyte train experiment=quickstart",
    TrainSettings,
    run,
    flags=(Flag("--dry-run", "only say what the run will take", "dry_run"), JSON),
)
