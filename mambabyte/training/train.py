"""Training from Python: one run, from its settings to its summary."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback

from mambabyte.errors import Interrupted, UserError, is_out_of_memory
from mambabyte.models import MambaByte
from mambabyte.ops import backend_for
from mambabyte.runs.run_directory import (
    check_records,
    explaining_full_disk,
    has_config,
    lock_run_directory,
    record_sitting,
)
from mambabyte.runs.summary import read_summary, set_summary_aside
from mambabyte.training.distributed.launching import lost_rank
from mambabyte.training.final_evaluation import summarize
from mambabyte.training.initial_weights import load_initial_weights
from mambabyte.training.loggers import build_loggers
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning.memory_estimate import MemoryBudget
from mambabyte.training.planning.plan import Plan, plan
from mambabyte.training.settings import TrainSettings
from mambabyte.training.spikes import SpikePolicy
from mambabyte.training.threads import using_threads
from mambabyte.training.trainer import build_callbacks, build_trainer


def train(settings: TrainSettings) -> dict[str, Any] | None:
    """Train until ``trainer.max_steps`` or for ``budget.training_seconds``, resuming a run that was stopped;
    then measure the result.

    Returns:
        The content of summary.json; None on every rank but the first.

    Raises:
        UserError: the settings, data or run directory are unusable; training diverged; the disk is full.
        Interrupted: stopped by a signal, with a checkpoint of the last step.
    """
    if settings.dry_run:
        raise UserError(
            "dry_run=true trains nothing: use mambabyte.training.planning.dry_run.forecast(settings)"
        )
    run = plan(settings)
    with using_threads(run.settings.trainer.threads):
        return _train_and_measure(run)


def _train_and_measure(run: Plan) -> dict[str, Any] | None:
    step = run.step
    if not run.complete:
        MemoryBudget.of(run.settings).check_least()
        # What is wrong with records, data or weights is said before anything is written to the run directory.
        if run.main_process:
            check_records(run.settings.run_dir)
            run.data.prepare_data()
            _check_data(run)
        module = _build_module(run)
        with lock_run_directory(run.settings.run_dir, run.config) if run.main_process else nullcontext():
            step = _fit(run, module)
    elif "trainer.max_steps" in run.changed and run.main_process:  # an unfinished run shall end here
        with lock_run_directory(run.settings.run_dir, run.config):
            record_sitting(run.settings.run_dir, step, run.changed)
    elif run.main_process and not has_config(run.settings.run_dir, run.config):
        with lock_run_directory(run.settings.run_dir, run.recorded):
            print("mambabyte: config.yaml was damaged: written anew from the checkpoint", file=sys.stderr)
    if not run.main_process:
        return None
    if summary := read_summary(run.settings.run_dir, step, run.settings.callbacks.evaluate_bytes):
        return summary
    with explaining_full_disk(run.settings.run_dir):
        return summarize(run.settings, step, run.data.validation_data())


def _check_data(run: Plan) -> None:
    """Raise UserError if the run cannot train on its data, or not from its checkpoint on."""
    try:
        run.data.check(run.place_in_data, run.settings.trainer.world_size)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise _not_resumable(run, error) or error from error


def _build_module(run: Plan) -> ByteLMModule:
    """The module with the weights that a new run begins with; those of a checkpoint are loaded later."""
    seed_everything(run.settings.seed, workers=True, verbose=False)
    module = ByteLMModule(run.settings, run.config, SpikePolicy(run.settings))
    if run.resume_from is None:
        load_initial_weights(module.model, run.settings)
    return module


def _fit(run: Plan, module: ByteLMModule) -> int:
    """Train, from the run's checkpoint if it has one; return the optimizer step that was reached."""
    settings = run.settings
    run_dir = settings.run_dir
    callbacks, preemption = build_callbacks(settings, run.data.validation_data(), run.callbacks)
    if run.main_process:  # when the checkpoint has been loaded, and turned out to be whole
        callbacks = [LambdaCallback(on_train_start=lambda *_: _begin(run)), *callbacks]
    loggers = build_loggers(settings, run.config) if run.main_process else []
    trainer = build_trainer(settings, callbacks, loggers)
    if run.main_process:
        _announce(run, module, trainer)
    try:
        trainer.fit(module, datamodule=run.data, ckpt_path=run.resume_from, weights_only=True)
    except RuntimeError as error:
        if lost := lost_rank(error):
            raise lost from error
        raise (_not_resumable(run, error, module) or error) from error.__cause__
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise (_not_resumable(run, error, module) or error) from error.__cause__
    # Only rank 0 reports a stop: a launcher takes the first exit code other than 0 for a failure and would
    # end rank 0 before it is done.
    if preemption.stopped and run.main_process:
        raise Interrupted(
            f"stopped at step {trainer.global_step}, saved in {run_dir}; the same command resumes from there"
        )
    return trainer.global_step


def _begin(run: Plan) -> None:
    set_summary_aside(run.settings.run_dir)
    record_sitting(run.settings.run_dir, run.step, run.changed)


def _not_resumable(run: Plan, error: Exception, module: ByteLMModule | None = None) -> UserError | None:
    """The sentence for an error before the first step: values in the checkpoint have wrong types."""
    if (module is not None and module.has_trained) or run.resume_from is None or is_out_of_memory(error):
        return None
    reason = (str(error).splitlines() or [""])[0]
    return UserError(
        f"'{run.resume_from}' cannot be resumed from ({type(error).__name__}: {reason}): remove it to resume "
        "from the checkpoint before it, or give the new run its own name="
    )


def _announce(run: Plan, module: ByteLMModule, trainer: Trainer) -> None:
    settings, model, device = run.settings, module.model, trainer.strategy.root_device
    reason = f" ({run.precision_reason})" if run.precision_reason else ""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = f"{model.num_parameters():,} parameters"
    if trained < model.num_parameters():
        size += f", {trained:,} of them trained"
    if settings.ckpt and run.resume_from is None:
        size += f", from '{settings.ckpt}'"
    scan = f", {backend_for(device)} scan" if isinstance(model, MambaByte) else ""
    print(
        f"mambabyte: run '{settings.name}' in {settings.run_dir}: {size}, "
        f"{_length(settings)}, {trainer.world_size} x {device.type}, "
        f"{settings.trainer.precision}{reason}{scan}",
        file=sys.stderr,
    )


def _length(settings: TrainSettings) -> str:
    """ "1,000 steps", or the time where that decides."""
    if settings.trainer.max_steps is None:
        return f"{settings.budget.training_seconds:g} s of training"
    return f"{settings.trainer.max_steps:,} steps"
