"""The Lightning trainer of a run, with our callbacks, and none of Lightning's own output or files."""

import logging
import warnings
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mambabyte.checkpoints import checkpoint_folder
from mambabyte.data import ByteCorpus
from mambabyte.data.tasks import TaskSequences
from mambabyte.errors import UserError
from mambabyte.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from mambabyte.training.callbacks.metrics import Metrics
from mambabyte.training.callbacks.preemption import Preemption
from mambabyte.training.callbacks.samples import Samples
from mambabyte.training.callbacks.scan_statistics import ScanStatistics
from mambabyte.training.callbacks.step_callback import Spikes, StepCallback
from mambabyte.training.callbacks.task_validation import TaskValidation
from mambabyte.training.callbacks.time_budget import TimeBudget
from mambabyte.training.callbacks.validation import Validation
from mambabyte.training.distributed.launching import SameCheckpoint, started_by_srun
from mambabyte.training.distributed.lost_ranks import LostRanks
from mambabyte.training.distributed.strategies import DataParallel, ShardedDataParallel
from mambabyte.training.settings import TrainSettings


def build_trainer(settings: TrainSettings, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """The trainer of a run.

    Raises:
        UserError: the devices asked for are not there, or the global batch does not divide among them.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # advice about data loader workers, missing validation loops and the like
    warnings.filterwarnings("ignore", module="lightning")
    config = settings.trainer
    plugins: list[Any] = [AtomicCheckpointIO()]
    if config.world_size == 1:
        plugins.append(LightningEnvironment())  # even if a launcher has started this process
    elif started_by_srun():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # it would save in the middle of a step
    strategy: Any = "auto"
    if config.world_size > 1:
        strategy = DataParallel()
        if config.strategy == "fsdp":
            strategy = ShardedDataParallel(config.world_size, config.sharded_checkpoints)
        callbacks = [LostRanks(), SameCheckpoint(), *callbacks]
    try:
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=int(config.num_nodes),
            strategy=strategy,
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
            max_steps=-1 if config.max_steps is None else config.max_steps,  # -1: endless
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            logger=loggers or False,
            callbacks=callbacks,
            plugins=plugins,
            default_root_dir=settings.run_dir,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"trainer.accelerator={config.accelerator} with trainer.devices={config.devices} cannot be "
            f"used here: {reason}"
        ) from error
    # Lightning's own stop signal, for which the host waits at every micro-batch; Preemption has its place
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    trainer.accumulate_grad_batches = config.accumulation(settings.context_length, trainer.world_size)
    return trainer


def build_callbacks(
    settings: TrainSettings, held_out: ByteCorpus | TaskSequences, extra: list[Callback]
) -> tuple[list[Callback], Preemption]:
    """The callbacks of a run that validates on ``held_out`` and the ``extra`` ones of its user; also the one
    that knows whether a signal stopped it.

    They see a step in this order: a validation's result belongs in that step's row of metrics, and a
    checkpoint is saved when all others, the user's included, are done.
    """
    config = settings.callbacks
    metrics = Metrics(settings)
    statistics = ScanStatistics(metrics.is_logged)
    validation: StepCallback
    if isinstance(held_out, TaskSequences):
        validation = TaskValidation(settings)
    else:
        validation = Validation(settings, held_out)
    ours = [Spikes(), statistics, validation, metrics, TimeBudget(settings, metrics), Samples(settings)]
    folder = checkpoint_folder(settings.run_dir)
    checkpoints = Checkpoints(folder, config.checkpoint_every, config.checkpoints_kept)
    preemption = Preemption(checkpoints)
    return [*ours, *extra, checkpoints, preemption], preemption
