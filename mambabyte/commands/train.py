"""mambabyte train: one run in its directory. The same command again resumes it, or says it is complete."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mambabyte.config.composition import typed
from mambabyte.errors import Interrupted


def run(cfg: DictConfig) -> None:
    """Train until ``trainer.max_steps``, then measure and report on stdout; with ``dry_run`` only say what
    that will take, and leave the run directory as it is.

    Raises:
        UserError: the configuration, data or run directory will not do; training diverged; the disk is full.
        Interrupted: stopped by a signal, with a checkpoint of the last step.
    """
    from mambabyte import checkpoints
    from mambabyte.data import ByteDataModule
    from mambabyte.data.sources.documents import with_absolute_paths
    from mambabyte.models import config_from_dict
    from mambabyte.runs.run_directory import check_same_run, lock_run_directory
    from mambabyte.training.distributed.launching import is_main_process, resolve_devices
    from mambabyte.training.planning.autotune import with_measurements
    from mambabyte.training.planning.budget import within_budget
    from mambabyte.training.planning.memory_estimate import MemoryBudget
    from mambabyte.training.settings import TrainerConfig

    cfg = within_budget(cfg)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    config["model"] = config_from_dict(config["model"]).to_dict()
    config["data"] = with_absolute_paths(config["data"])
    run_dir = Path(cfg.run_dir)
    main_process = is_main_process()
    last, step = None, 0
    if newest := checkpoints.read_newest(run_dir):
        saved, damaged = newest
        last, step, before = saved.path, saved.step, saved.config
        check_same_run(run_dir, {**before, "data": with_absolute_paths(before["data"])}, config)
    cfg = with_measurements(cfg, keep=not cfg.dry_run)
    config["trainer"] = OmegaConf.to_container(cfg.trainer, resolve=True)
    settings = resolve_devices(typed(cfg.trainer, TrainerConfig))
    if last is not None and main_process:
        for path in damaged:
            print(f"mambabyte: '{path}' is damaged, and the one before it counts", file=sys.stderr)
        verb = "is complete at" if step >= settings.max_steps else "goes on from"
        print(f"mambabyte: run '{cfg.name}' {verb} step {step}", file=sys.stderr)
    data = ByteDataModule.from_config(
        config["data"],
        cfg.context_length,
        settings.micro_batch_size,
        settings.global_batch_size(cfg.context_length),
        cfg.seed,
    )
    if cfg.dry_run:
        if main_process:
            _forecast(cfg, settings, data, step)
        return
    if step < settings.max_steps:
        MemoryBudget.of(cfg, settings).check_state()
        with lock_run_directory(run_dir, config) if main_process else nullcontext():
            step = _fit(cfg, config, settings, data, last, main_process)
    if main_process:
        _report(cfg, step, data)


def _fit(
    cfg: DictConfig, config: dict[str, Any], settings: Any, data: Any, last: Path | None, main_process: bool
) -> int:
    """Train from the checkpoint ``last`` (None: from the start) and return the step that was reached."""
    from lightning.pytorch import seed_everything

    from mambabyte.models import config_from_dict
    from mambabyte.training.activation_checkpointing import checkpoint_activations
    from mambabyte.training.distributed.launching import lost_rank
    from mambabyte.training.loggers import build_logger
    from mambabyte.training.module import ByteLMModule
    from mambabyte.training.optimizer import AdamWConfig
    from mambabyte.training.settings import CallbacksConfig, LoggerConfig
    from mambabyte.training.spikes import SpikePolicy
    from mambabyte.training.trainer import build_callbacks, build_trainer

    run_dir = Path(cfg.run_dir)
    optimizer = typed(cfg.optimizer, AdamWConfig)
    callbacks, interruption = build_callbacks(
        typed(cfg.callbacks, CallbacksConfig), settings, cfg.context_length, run_dir, data.validation_corpus()
    )
    seed_everything(cfg.seed, workers=True, verbose=False)
    model = config_from_dict(config["model"]).build()
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    policy = SpikePolicy(run_dir / "spikes", settings.on_spike, settings.spike_threshold)
    module = ByteLMModule(model, optimizer, settings.max_steps, settings.gradient_clip, config, policy)
    logger_settings = typed(cfg.logger, LoggerConfig)
    logger = build_logger(logger_settings, run_dir, cfg.name, config) if main_process else None
    trainer = build_trainer(settings, cfg.context_length, run_dir, callbacks, logger)
    if main_process:
        _announce(cfg, model, trainer)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except RuntimeError as error:
        if lost := lost_rank(error):
            raise lost from error
        raise
    # The exit code is rank 0's to give: a launcher takes the first one that is not 0 for a fault of the run,
    # and would end rank 0 before it is done.
    if interruption.stopped and main_process:
        raise Interrupted(
            f"stopped at step {trainer.global_step}, saved in {run_dir}; the same command goes on from there"
        )
    return trainer.global_step


def _forecast(cfg: DictConfig, settings: Any, data: Any, step: int) -> None:
    from mambabyte.training.planning.dry_run import describe, forecast

    run = forecast(cfg, settings, data, step)
    print(json.dumps(run) if cfg.json else describe(run))


def _announce(cfg: DictConfig, model: Any, trainer: Any) -> None:
    from mambabyte.models import MambaByte
    from mambabyte.ops import backend_for

    device = trainer.strategy.root_device
    scan = f", {backend_for(device)} scan" if isinstance(model, MambaByte) else ""
    print(
        f"mambabyte: run '{cfg.name}' in {cfg.run_dir}: {model.num_parameters():,} parameters, "
        f"{cfg.trainer.max_steps:,} steps, {trainer.world_size} x {device.type}, {cfg.trainer.precision}"
        f"{scan}",
        file=sys.stderr,
    )


def _report(cfg: DictConfig, step: int, data: Any) -> None:
    from mambabyte.runs.run_directory import explaining_full_disk
    from mambabyte.runs.summary import read_summary, report, summarize
    from mambabyte.runtime.devices import choose_device
    from mambabyte.training.settings import CallbacksConfig

    run_dir = Path(cfg.run_dir)
    summary = read_summary(run_dir, step)
    if summary is None:
        callbacks = typed(cfg.callbacks, CallbacksConfig)
        device = choose_device("cpu" if cfg.trainer.accelerator == "cpu" else "auto")
        corpus = data.validation_corpus()
        with explaining_full_disk(run_dir):
            summary = summarize(run_dir, cfg.name, step, cfg.context_length, corpus, callbacks, device)
    print(json.dumps(summary) if cfg.json else report(summary))
