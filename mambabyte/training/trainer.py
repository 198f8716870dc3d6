"""The Lightning trainer of a run, with our callbacks, and none of Lightning's own output or files."""

import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mambabyte.checkpoints import checkpoint_folder
from mambabyte.data import ByteCorpus
from mambabyte.errors import UserError
from mambabyte.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from mambabyte.training.callbacks.metrics import Metrics
from mambabyte.training.callbacks.preemption import Preemption
from mambabyte.training.callbacks.samples import Samples
from mambabyte.training.callbacks.scan_statistics import ScanStatistics
from mambabyte.training.callbacks.step_callback import Spikes
from mambabyte.training.callbacks.validation import Validation
from mambabyte.training.distributed.launching import SameCheckpoint, started_by_srun
from mambabyte.training.distributed.strategies import DataParallel, ShardedDataParallel
from mambabyte.training.settings import TrainerSettings, TrainSettings

_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


def build_trainer(
    config: TrainerSettings,
    context_length: int,
    run_dir: Path,
    callbacks: list[Callback],
    logger: Logger | None,
) -> Trainer:
    """The trainer of ``config``.

    Raises:
        UserError: the devices asked for are not there, or the global batch does not divide among them.
    """
    _silence_lightning()
    plugins: list[Any] = [AtomicCheckpointIO()]
    if config.world_size == 1:
        plugins.append(LightningEnvironment())  # nobody else to know of, whatever has started this process
    elif started_by_srun():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # it would save in the middle of a step
    strategy: Any = "auto"
    if config.world_size > 1:
        sharded = config.strategy == "fsdp"
        strategy = (
            ShardedDataParallel(config.world_size, config.sharded_checkpoints) if sharded else DataParallel()
        )
        callbacks = [SameCheckpoint(), *callbacks]
    try:
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=int(config.num_nodes),
            strategy=strategy,
            precision=_PRECISION[config.precision],
            max_steps=config.max_steps,
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            logger=logger or False,
            callbacks=callbacks,
            plugins=plugins,
            default_root_dir=run_dir,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"trainer.accelerator={config.accelerator} with trainer.devices={config.devices} cannot be "
            f"used here: {reason}"
        ) from error
    trainer.accumulate_grad_batches = config.accumulation(context_length, trainer.world_size)
    return trainer


def build_callbacks(
    settings: TrainSettings, validation_corpus: ByteCorpus
) -> tuple[list[Callback], Preemption]:
    """The callbacks of a run, and among them the one that knows whether a signal stopped it.

    Their order is that in which they see a step: what validation finds belongs in that step's row of metrics,
    and a checkpoint is taken when everything else is done. The user's own see it before that.
    """
    config, trainer, run_dir = settings.callbacks, settings.trainer, settings.run_dir
    validation = Validation(
        validation_corpus,
        config.validate_every,
        config.validate_bytes,
        settings.context_length,
        int(trainer.micro_batch_size),
    )
    metrics = Metrics(
        run_dir / "metrics.csv",
        config.log_every,
        config.validate_every,
        trainer.max_steps,
        trainer.global_batch_bytes,
    )
    statistics = ScanStatistics(metrics.is_logged)
    samples = Samples(run_dir / "samples.txt", config.sample_every, config.sample_prompt, config.sample_bytes)
    checkpoints = Checkpoints(checkpoint_folder(run_dir), config.checkpoint_every, config.checkpoints_kept)
    preemption = Preemption(checkpoints)
    ours = [Spikes(), statistics, validation, metrics, samples]
    return [*ours, *config.build_extra(), checkpoints, preemption], preemption


def _silence_lightning() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # advice about loaders' workers, missing validation loops and the like: our loop is meant as it is
    warnings.filterwarnings("ignore", module="lightning")
