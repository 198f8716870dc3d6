"""Loggers besides metrics.csv. None prompts for input and none requires an API key."""

import os
import sys
import uuid
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from mambabyte.errors import UserError
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.credentials import has_wandb_credentials
from mambabyte.training.settings import TrainSettings


def check_loggers(settings: TrainSettings) -> None:
    """Raise UserError if the package of a logger that is chosen is not installed. Writes nothing."""
    loads: dict[str, Callable[[], Any]] = {
        "tensorboard": partial(_tensorboard, settings),
        "wandb": partial(import_module, "wandb"),
    }
    for service, load in loads.items():
        try:
            if getattr(settings.logger, service):
                load()
        except ModuleNotFoundError as error:
            raise UserError(
                f"logger={service} needs a package that is not installed: pip install {service}"
            ) from error


def build_loggers(settings: TrainSettings, config: dict[str, Any]) -> list[Logger]:
    """The loggers of a run: none for ``csv``, since metrics.csv is always written.

    Args:
        config: the configuration that wandb shows with the run.

    Raises:
        UserError: the service refuses the run.
    """
    loggers: list[Logger] = []
    if settings.logger.tensorboard:
        loggers.append(_tensorboard(settings))
    if settings.logger.wandb:
        loggers.append(_wandb(settings, config))
    return loggers


def update_config(loggers: list[Logger], config: dict[str, Any]) -> None:
    """Show a run's configuration in wandb as it has become."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(config, allow_val_change=True)


def _tensorboard(settings: TrainSettings) -> TensorBoardLogger:
    return TensorBoardLogger(str(settings.run_dir), name="tensorboard", version="")


def _wandb(settings: TrainSettings, config: dict[str, Any]) -> WandbLogger:
    import wandb

    run_dir = settings.run_dir
    offline = "WANDB_MODE" not in os.environ and not has_wandb_credentials()
    if offline:
        print(
            f"mambabyte: no wandb key: recording offline, to be sent by `wandb sync {run_dir}/wandb/*`",
            file=sys.stderr,
        )
    id_file = run_dir / "wandb_id"
    if not id_file.exists():
        with atomic_write(id_file) as file:
            file.write(uuid.uuid4().hex[:12].encode())
    try:
        identity = id_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"'{id_file}' cannot be read ({error}): remove it to begin a new one") from error
    try:
        run = wandb.init(
            name=settings.name,
            project=settings.logger.project,
            entity=settings.logger.entity,
            dir=run_dir,
            id=identity,
            resume="allow",
            reinit="finish_previous",  # the previous job of a sweep
            mode="offline" if offline else None,
            config=config,
            settings=wandb.Settings(silent=True) if offline else None,  # the line above says it
        )
    except wandb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"wandb refused the run ({reason}): set WANDB_MODE=offline, or use logger=csv"
        ) from error
    run.define_metric("trainer/global_step")  # the x-axis that Lightning logs
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, save_dir=run_dir)
