"""What is settled before a run trains: its settings, its data and the checkpoint it resumes from."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from mambabyte import checkpoints
from mambabyte.config.settings import fill, to_plain
from mambabyte.data import ByteDataModule
from mambabyte.errors import UserError
from mambabyte.runs.changes import Changes, changes, in_words, refuse_other_run
from mambabyte.runtime.precision import fastest_precision, slowness_of_bf16
from mambabyte.training.distributed.launching import is_main_process, resolve_devices
from mambabyte.training.initial_weights import with_model_of_checkpoint
from mambabyte.training.loggers import check_loggers
from mambabyte.training.planning.autotune import with_measurements
from mambabyte.training.planning.budget import within_budget
from mambabyte.training.planning.memory_estimate import on_meta, training_device
from mambabyte.training.settings import TrainerSettings, TrainSettings
from mambabyte.training.time_budget import refuse_time_spent, with_known_end
from mambabyte.training.trainer import build_trainer


@dataclass(frozen=True)
class Plan:
    """A run that can start.

    Attributes:
        settings: with numbers for all that was ``auto`` or a budget; ``trainer.max_steps`` is None while
            ``budget.training_seconds`` has not decided it.
        config: the settings to save, in plain values; devices are as the user gave them.
        resume_from: the run's newest undamaged checkpoint, saved after ``step`` optimizer steps and
            ``seconds`` of training.
        place_in_data: the data module's state in it, if it has one.
        recorded: the configuration in that checkpoint; empty without one.
        changed: the settings that differ from it.
        callbacks: the user's, of ``callbacks.extra``; none if nothing is to be trained.
        main_process: whether this process has rank 0, which prints and writes.
        precision_reason: why ``trainer.precision``, which the user left to us, is what it is; None if the
            user has set it, or if nothing is left to train.
    """

    settings: TrainSettings
    config: dict[str, Any]
    data: ByteDataModule
    resume_from: Path | None
    step: int
    seconds: float
    place_in_data: dict[str, Any] | None
    recorded: dict[str, Any]
    changed: Changes
    callbacks: list[Callback]
    main_process: bool
    precision_reason: str | None

    @property
    def complete(self) -> bool:
        """Whether no step is left to train."""
        return _is_complete(self.settings, self.step)


def plan(settings: TrainSettings, keep_measurements: bool = True) -> Plan:
    """Solve budgets, measure what is ``auto``, and find the checkpoint to resume from.

    Raises:
        UserError: the settings or the data are faulty, or the run directory holds another run.
    """
    settings = fill(TrainSettings, to_plain(settings))  # checks a change made in Python as a whole
    settings = replace(settings, data=settings.data.with_absolute_paths())
    saved, damaged = checkpoints.read_newest(settings.run_dir) or (None, [])
    step, seconds = (saved.step, _seconds(saved.content)) if saved else (0, 0.0)
    recorded: dict[str, Any] = saved.config if saved else {}
    settings = within_budget(with_model_of_checkpoint(settings, recorded))
    main_process = is_main_process()
    precision_asked = settings.trainer.precision
    settings = _with_recorded_precision(settings, recorded)
    given = settings
    settings, recorded, about_the_end = with_known_end(settings, recorded)
    if saved:
        refuse_other_run(settings.run_dir, changes(recorded, settings))
        refuse_time_spent(settings, step, seconds)
        if settings.trainer.max_steps is not None and step > settings.trainer.max_steps:
            raise UserError(
                f"run '{settings.name}' has taken {step:,} steps already, more than trainer.max_steps="
                f"{settings.trainer.max_steps:,}: set {step:,} to end it there, or give the new run its own "
                "name="
            )
    given.check_schedule()
    _check_lengths(settings)
    callbacks: list[Callback] = []
    if keep_measurements and not _is_complete(settings, step):
        callbacks = settings.callbacks.build_extra()
        _check_parts(settings, main_process)
        # what is wrong with the data is found before there is a run directory
        if settings.data.is_task:
            settings.data.task_sequences(settings.context_length)
        else:
            settings.data.prepare("validation")
    settings = with_measurements(settings, keep_measurements)
    if main_process and about_the_end is not None:
        print(f"mambabyte: {about_the_end}", file=sys.stderr)
    changed = changes(recorded, settings) if saved else {}
    config = to_plain(settings)
    settings = replace(settings, trainer=resolve_devices(settings.trainer))
    if saved and main_process:
        for each in damaged:
            print(f"mambabyte: '{each}' is damaged; the checkpoint before it is used", file=sys.stderr)
        complete = _is_complete(settings, step)
        verb = "is complete at" if complete else "resumes from"
        print(f"mambabyte: run '{settings.name}' {verb} step {step}", file=sys.stderr)
        if changed and not complete:
            said = f"{in_words(changed, 'then')}{_jump(settings, step, changed)}"
            print(f"mambabyte: changed since then: {said}", file=sys.stderr)
    reason = None
    if main_process and not _is_complete(settings, step):
        reason = _precision_reason(precision_asked, settings.trainer)
        _warn_of_slow_bf16(settings.trainer)
    data = ByteDataModule(
        settings.data,
        settings.context_length,
        int(settings.trainer.micro_batch_size),
        settings.trainer.global_batch_size(settings.context_length),
        settings.seed,
    )
    place = saved.content.get(ByteDataModule.__qualname__) if saved else None  # where Lightning keeps it
    return Plan(
        settings, config, data, saved.path if saved else None, step, seconds, place, recorded, changed,
        callbacks, main_process, reason,
    )  # fmt: skip


def _with_recorded_precision(settings: TrainSettings, recorded: dict[str, Any]) -> TrainSettings:
    """``auto`` is what the run has begun with, on whichever machine."""
    trainer = recorded.get("trainer")
    then = trainer.get("precision") if isinstance(trainer, dict) else None
    if settings.trainer.precision == "auto" and (then == "fp32" or then == "bf16"):
        settings = replace(settings, trainer=replace(settings.trainer, precision=then))
    return settings


def _precision_reason(asked: str, trainer: TrainerSettings) -> str | None:
    if asked != "auto":
        return None
    fastest = fastest_precision(training_device(trainer.accelerator))
    return fastest.reason if fastest.name == trainer.precision else "as the run began"


def _warn_of_slow_bf16(trainer: TrainerSettings) -> None:
    device = training_device(trainer.accelerator)
    if trainer.precision == "bf16" and (slow := slowness_of_bf16(device)):
        print(f"mambabyte: {slow}: a new run takes the faster with trainer.precision=auto", file=sys.stderr)


def _is_complete(settings: TrainSettings, step: int) -> bool:
    return settings.trainer.max_steps is not None and step >= settings.trainer.max_steps


def _seconds(checkpoint: dict[str, Any]) -> float:
    """Those spent on the steps of a checkpoint; 0 if it does not say so, as one of another program."""
    callbacks = checkpoint.get("callbacks")
    state = callbacks.get("Metrics") if isinstance(callbacks, dict) else None
    seconds = state.get("seconds") if isinstance(state, dict) else None
    return seconds if isinstance(seconds, float) else 0.0


def _check_parts(settings: TrainSettings, main_process: bool) -> None:
    """Raise UserError if a logger's package, a device of the trainer or a named weight is not there."""
    on_meta(settings.model, settings.lora, settings.freeze)
    if main_process:
        check_loggers(settings)
    size = 1 if settings.trainer.micro_batch_size == "auto" else settings.trainer.micro_batch_size
    trainer = resolve_devices(replace(settings.trainer, micro_batch_size=size))
    build_trainer(replace(settings, trainer=trainer), [], [])


def _check_lengths(settings: TrainSettings) -> None:
    """Raise UserError if the model has no positions for the run's windows, or for its samples."""
    callbacks, length = settings.callbacks, settings.model.positions
    if length is not None and settings.context_length > length:
        raise UserError(
            f"context_length={settings.context_length:,} is more than model.max_length={length:,}, the bytes "
            "that this model has positions for: lower the first or raise the second"
        )
    most, steps = settings.model.max_bytes, settings.trainer.max_steps
    sampled = callbacks.sample_every and (steps is None or steps >= callbacks.sample_every)
    if most is None or not (sampled and callbacks.sample_bytes):
        return
    # without a prompt a sample follows a line feed, and the last byte of one is not read
    prompt = len(callbacks.sample_prompt.encode("utf-8", "surrogateescape")) or 1
    if prompt + callbacks.sample_bytes - 1 > most:
        raise UserError(
            f"callbacks.sample_bytes={callbacks.sample_bytes:,} after callbacks.sample_prompt are more than "
            f"the {most:,} bytes that this model can read of any text: set "
            f"callbacks.sample_bytes={max(0, most + 1 - prompt)} or less, or raise model.max_length"
        )


def _jump(settings: TrainSettings, step: int, changed: Changes) -> str:
    """What another end does to the learning rate, if anything."""
    optimizer, steps = settings.optimizer, settings.trainer.max_steps
    steps_then, _ = changed.get("trainer.max_steps", (steps, steps))
    decay_then, _ = changed.get("optimizer.decay_from", (optimizer.decay_from, None))
    if not all(number is None or type(number) is int for number in (steps_then, decay_then)):
        return ""
    then = replace(optimizer, decay_from=decay_then)
    now = optimizer.learning_rate_at(step, steps)
    if math.isclose(then.learning_rate_at(step, steps_then), now, rel_tol=1e-3):
        return ""
    last = then.learning_rate_at(step - 1, steps_then)
    return f"; so the learning rate goes from {last:.2g} at step {step} to {now:.2g} at step {step + 1}"
