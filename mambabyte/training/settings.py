"""The typed settings of `mambabyte train`. Importing this imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import Settings, setting
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError
from mambabyte.models.hyperparameters import ByteLMConfig, LoraSettings
from mambabyte.training.optimizer import OptimizerConfig


@dataclass
class TrainerSettings(Settings):
    """conf/trainer: the length of training, its devices and its precision.

    A step has ``global_batch_bytes`` on any machine: gradients are accumulated over as many forward passes.
    """

    section: ClassVar[str] = "trainer"
    max_steps: int | None = setting(at_least=1, at_most=10**9)
    global_batch_bytes: int = setting(at_least=1, at_most=2**32)
    micro_batch_size: int | Literal["auto"] = setting(at_least=1, at_most=2**20)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | Literal["auto"] | None = setting(default=None, at_least=1, at_most=1024)
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = "auto"
    devices: int | Literal["auto"] = setting(default=1, at_least=1, at_most=1024)
    num_nodes: int | Literal["auto"] = setting(default=1, at_least=1, at_most=10**5)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    sharded_checkpoints: bool = False
    activation_checkpointing: bool = False
    gradient_clip: float | None = setting(default=1.0, above=0)
    on_spike: Literal["stop", "skip"] = "stop"
    spike_threshold: float | None = setting(default=None, above=0)

    @property
    def world_size(self) -> int:
        """The number of processes, once `launching.resolve_devices` has replaced ``auto``."""
        return int(self.devices) * int(self.num_nodes)

    def global_batch_size(self, context_length: int) -> int:
        """Windows per optimizer step.

        Raises:
            UserError: ``global_batch_bytes`` is not a multiple of ``context_length``.
        """
        if self.global_batch_bytes % context_length:
            nearest = _nearest_multiples(self.global_batch_bytes, context_length)
            raise UserError(
                f"trainer.global_batch_bytes={self.global_batch_bytes} must be a multiple of "
                f"context_length={context_length}: the nearest that are: {nearest}"
            )
        return self.global_batch_bytes // context_length

    def accumulation(self, context_length: int, world_size: int) -> int:
        """Forward passes per optimizer step on each of ``world_size`` devices.

        Raises:
            UserError: the global batch cannot be divided evenly.
        """
        self.global_batch_size(context_length)
        together = context_length * int(self.micro_batch_size) * world_size
        if self.global_batch_bytes % together:
            nearest = _nearest_multiples(self.global_batch_bytes, together)
            raise UserError(
                f"trainer.global_batch_bytes={self.global_batch_bytes} must be a multiple of {together} "
                f"(context_length {context_length} x micro_batch_size {self.micro_batch_size} x devices "
                f"{world_size}): the nearest that are: {nearest}"
            )
        return self.global_batch_bytes // together


@dataclass
class CallbackSettings(Settings):
    """conf/callbacks: what happens between steps, and every how many optimizer steps (0: never)."""

    section: ClassVar[str] = "callbacks"
    log_every: int = setting(default=10, at_least=1, at_most=10**9)
    validate_every: int = setting(default=100, at_least=0, at_most=10**9)
    validate_bytes: int = setting(default=131_072, at_least=1, at_most=2**62)
    evaluate_bytes: int | None = setting(default=None, at_least=0, at_most=2**62)
    sample_every: int = setting(default=500, at_least=0, at_most=10**9)
    sample_bytes: int = setting(default=256, at_least=0, at_most=10**6)
    sample_prompt: str = ""
    checkpoint_every: int = setting(default=500, at_least=0, at_most=10**9)
    checkpoints_kept: int = setting(default=2, at_least=1, at_most=10**9)
    extra: list[dict[str, Any]] = field(default_factory=list)

    def build_extra(self) -> list[Any]:
        """The user's Lightning callbacks that ``extra`` names.

        Raises:
            UserError: one of them cannot be built or is no callback.
        """
        from lightning.pytorch import Callback

        from mambabyte.config.composition import instantiate

        built = []
        for i, description in enumerate(self.extra):
            callback = instantiate(description, f"callbacks.extra[{i}]")
            if not isinstance(callback, Callback):
                target = description["_target_"]
                raise UserError(f"callbacks.extra[{i}]._target_={target} is not a Lightning callback")
            built.append(callback)
        return built


@dataclass
class LoggerSettings(Settings):
    """conf/logger: where metrics go, which is metrics.csv in any case. ``logger=[wandb,tensorboard]`` merges
    two of its files."""

    section: ClassVar[str] = "logger"
    csv: Literal[True] = True
    wandb: bool = False
    tensorboard: bool = False
    project: str | None = None
    entity: str | None = None

    def __post_init__(self) -> None:
        if not self.wandb and (self.project or self.entity):
            raise UserError("logger.project and logger.entity are of logger=wandb, which is not chosen")


@dataclass
class BudgetSettings(Settings):
    """conf/budget: what a run should cost; null is no limit."""

    section: ClassVar[str] = "budget"
    parameters: float | None = setting(default=None, at_least=1, at_most=10**13)
    training_flops: float | None = setting(default=None, above=0)
    training_seconds: float | None = setting(default=None, above=0, at_most=10**10)
    decay_share: float = setting(default=0.3, above=0, below=1)

    def __post_init__(self) -> None:
        if self.training_flops is not None and self.training_seconds is not None:
            raise UserError(
                "budget.training_flops and budget.training_seconds both decide trainer.max_steps: "
                "set one of them to null"
            )


@dataclass(kw_only=True)
class SettingsButModel(CommandSettings):
    """conf/train.yaml without ``model``, whose class imports torch."""

    yaml: ClassVar[str] = "train"
    name: str
    seed: int = setting(at_least=0, below=2**32)
    context_length: int = setting(at_least=1, at_most=2**30)
    ckpt: str | None
    freeze: list[str]
    lora: LoraSettings | None
    run_dir: Path
    dry_run: bool
    json: bool
    data: DataSettings
    trainer: TrainerSettings
    budget: BudgetSettings
    logger: LoggerSettings
    callbacks: CallbackSettings
    optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if not self.name.isprintable() or any(part.strip() in ("", ".", "..") for part in parts):
            raise UserError(f"name must name a folder, in letters that can be printed, not {self.name!r}")
        if self.name.startswith("~"):
            raise UserError(
                f"name must not begin with ~, as {self.name!r} does: it is no path; run_dir= is one"
            )
        if self.lora is not None and self.ckpt is None:
            raise UserError("lora= adapts the weights of ckpt=, which is not set")
        if self.lora is not None and self.freeze:
            raise UserError("lora= trains its adapters alone, so freeze= would say nothing: set freeze=[]")
        if self.ckpt is not None and not self.ckpt.startswith("hub:"):
            absolute = os.path.abspath(os.path.expanduser(self.ckpt))
            if absolute != self.ckpt:
                self.ckpt = absolute

    def check_schedule(self) -> None:
        """Raise UserError if training ends before the learning rate has reached its peak, or begins to decay
        only after the end. With a time budget, both are known only later."""
        warmup, steps = self.optimizer.warmup_steps, self.trainer.max_steps
        decay = self.optimizer.decay_from
        if steps is None:
            if decay is not None:
                raise UserError(
                    f"optimizer.decay_from={decay:,} is what budget.training_seconds decides: set it to "
                    "null, or trainer.max_steps to a number"
                )
            return
        if decay is not None and decay >= steps:
            raise UserError(
                f"optimizer.decay_from={decay:,} is not below trainer.max_steps={steps:,}, so the learning "
                "rate would never fall: lower the first or raise the second"
            )
        if warmup > steps:
            raise UserError(
                f"optimizer.warmup_steps={warmup:,} is more than all trainer.max_steps={steps:,}, so the "
                "learning rate would never reach its peak: lower the first or raise the second"
            )


@dataclass(kw_only=True)
class TrainSettings(SettingsButModel):
    """conf/train.yaml: one run, in ``run_dir``."""

    model: ByteLMConfig


def _nearest_multiples(value: int, unit: int) -> str:
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)
