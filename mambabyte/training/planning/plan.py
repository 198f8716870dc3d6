"""A run before it trains: settings solved, data module built, the checkpoint to resume from found."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mambabyte import checkpoints
from mambabyte.config.settings import fill, to_plain
from mambabyte.data import ByteDataModule
from mambabyte.data.settings import DataSettings
from mambabyte.runs.run_directory import check_same_run
from mambabyte.training.distributed.launching import is_main_process, resolve_devices
from mambabyte.training.planning.autotune import with_measurements
from mambabyte.training.planning.budget import within_budget
from mambabyte.training.settings import TrainSettings


@dataclass(frozen=True)
class Plan:
    """A run that can begin.

    settings: nothing in them is left to be solved, measured or counted.
    config: the settings as the run keeps them, in plain values; devices are as the user gave them.
    resume_from: the run's newest whole checkpoint. step: the optimizer step that it was taken at, else 0.
    main_process: whether this process has rank 0, which prints and writes.
    """

    settings: TrainSettings
    config: dict[str, Any]
    data: ByteDataModule
    resume_from: Path | None
    step: int
    main_process: bool


def plan(settings: TrainSettings, keep_measurements: bool = True) -> Plan:
    """Solve budgets, measure what is left to ``auto``, and look at what the run directory holds.

    Raises:
        UserError: settings that cannot be obeyed, or another run's directory.
    """
    settings = fill(TrainSettings, to_plain(settings))  # a change made in Python is checked as a whole
    settings = replace(settings, data=settings.data.with_absolute_paths())
    settings = within_budget(settings)
    main_process = is_main_process()
    path, step = None, 0
    damaged: list[Path] = []
    if newest := checkpoints.read_newest(settings.run_dir):
        saved, damaged = newest
        path, step = saved.path, saved.step
        check_same_run(settings.run_dir, _saved_config(saved.config), to_plain(settings))
    settings = with_measurements(settings, keep_measurements)
    config = to_plain(settings)
    settings = replace(settings, trainer=resolve_devices(settings.trainer))
    if path is not None and main_process:
        for each in damaged:
            print(f"mambabyte: '{each}' is damaged, and the one before it counts", file=sys.stderr)
        verb = "is complete at" if step >= settings.trainer.max_steps else "goes on from"
        print(f"mambabyte: run '{settings.name}' {verb} step {step}", file=sys.stderr)
    data = ByteDataModule(
        settings.data,
        settings.context_length,
        int(settings.trainer.micro_batch_size),
        settings.trainer.global_batch_size(settings.context_length),
        settings.seed,
    )
    return Plan(settings, config, data, path, step, main_process)


def _saved_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved run's configuration, its data section as this version writes it."""
    data = DataSettings.from_settings(config["data"], "data").with_absolute_paths()
    return {**config, "data": to_plain(data)}
