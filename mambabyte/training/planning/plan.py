"""What is settled before a run trains: its settings, its data and the checkpoint it resumes from."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mambabyte import checkpoints
from mambabyte.config.settings import fill, to_plain
from mambabyte.data import ByteDataModule
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError
from mambabyte.runs.changes import Changes, changes, in_words, refuse_other_run
from mambabyte.training.distributed.launching import is_main_process, resolve_devices
from mambabyte.training.loggers import check_loggers
from mambabyte.training.planning.autotune import with_measurements
from mambabyte.training.planning.budget import within_budget
from mambabyte.training.settings import TrainSettings
from mambabyte.training.trainer import build_trainer


@dataclass(frozen=True)
class Plan:
    """A run that can start.

    Attributes:
        settings: with numbers for all that was ``auto`` or a budget.
        config: the settings to save, in plain values; devices are as the user gave them.
        resume_from: the run's newest undamaged checkpoint, saved after ``step`` optimizer steps.
        recorded: the configuration in that checkpoint; empty without one.
        changed: the settings that differ from it.
        main_process: whether this process has rank 0, which prints and writes.
    """

    settings: TrainSettings
    config: dict[str, Any]
    data: ByteDataModule
    resume_from: Path | None
    step: int
    recorded: dict[str, Any]
    changed: Changes
    main_process: bool


def plan(settings: TrainSettings, keep_measurements: bool = True) -> Plan:
    """Solve budgets, measure what is ``auto``, and find the checkpoint to resume from.

    Raises:
        UserError: the settings or the data are faulty, or the run directory holds another run.
    """
    settings = fill(TrainSettings, to_plain(settings))  # checks a change made in Python as a whole
    settings = replace(settings, data=settings.data.with_absolute_paths())
    settings = within_budget(settings)
    main_process = is_main_process()
    saved, damaged = checkpoints.read_newest(settings.run_dir) or (None, [])
    step = saved.step if saved else 0
    recorded: dict[str, Any] = {}
    if saved:
        saved_data = DataSettings.from_settings(saved.config.get("data"), "data").with_absolute_paths()
        recorded = {**saved.config, "data": to_plain(saved_data)}  # as this version writes it
        refuse_other_run(settings.run_dir, changes(recorded, settings))
    if settings.budget.training_seconds is None:
        settings.check_warmup()
    if keep_measurements and step < settings.trainer.max_steps:
        _check_parts(settings, main_process)
        settings.data.prepare("validation")  # what is wrong with it is found before there is a run directory
    settings = with_measurements(settings, keep_measurements)
    if main_process and settings.optimizer.warmup_steps > settings.trainer.max_steps:
        print(  # and not refused: it depends on this machine's speed
            "mambabyte: the learning rate never reaches its peak: optimizer.warmup_steps="
            f"{settings.optimizer.warmup_steps:,}, and the time is enough for {settings.trainer.max_steps:,}",
            file=sys.stderr,
        )
    if step > settings.trainer.max_steps:
        raise UserError(
            f"run '{settings.name}' has taken {step:,} steps already, more than trainer.max_steps="
            f"{settings.trainer.max_steps:,}: set {step:,} to end it there, or give the new run its own name="
        )
    changed = changes(recorded, settings) if saved else {}
    config = to_plain(settings)
    settings = replace(settings, trainer=resolve_devices(settings.trainer))
    if saved and main_process:
        for each in damaged:
            print(f"mambabyte: '{each}' is damaged; the checkpoint before it is used", file=sys.stderr)
        verb = "is complete at" if step >= settings.trainer.max_steps else "resumes from"
        print(f"mambabyte: run '{settings.name}' {verb} step {step}", file=sys.stderr)
        if changed and step < settings.trainer.max_steps:
            said = f"{in_words(changed, 'then')}{_jump(settings, step, changed)}"
            print(f"mambabyte: changed since then: {said}", file=sys.stderr)
    data = ByteDataModule(
        settings.data,
        settings.context_length,
        int(settings.trainer.micro_batch_size),
        settings.trainer.global_batch_size(settings.context_length),
        settings.seed,
    )
    resume_from = saved.path if saved else None
    return Plan(settings, config, data, resume_from, step, recorded, changed, main_process)


def _check_parts(settings: TrainSettings, main_process: bool) -> None:
    """Raise UserError if a callback, a logger's package or the devices of the trainer are not there."""
    settings.callbacks.build_extra()
    if main_process:
        check_loggers(settings)
    size = 1 if settings.trainer.micro_batch_size == "auto" else settings.trainer.micro_batch_size
    trainer = resolve_devices(replace(settings.trainer, micro_batch_size=size))
    build_trainer(replace(settings, trainer=trainer), [], [])


def _jump(settings: TrainSettings, step: int, changed: Changes) -> str:
    """What another number of steps does to the learning rate, if anything."""
    steps_then, steps_now = changed.get("trainer.max_steps", (None, 0))
    rate = settings.optimizer.learning_rate_at
    if not isinstance(steps_then, int) or math.isclose(
        rate(step, steps_then), now := rate(step, steps_now), rel_tol=1e-3
    ):
        return ""
    last = rate(step - 1, steps_then)
    return f"; so the learning rate goes from {last:.2g} at step {step} to {now:.2g} at step {step + 1}"
