"""The typed form of the trainer, callbacks and logger sections of the configuration."""

from dataclasses import dataclass
from typing import Literal

from mambabyte.errors import UserError


@dataclass
class TrainerConfig:
    """conf/trainer: how long and how wide to train.

    Gradients are accumulated over ``global_batch_bytes / (context_length * micro_batch_size * devices)``
    forward passes, so that a step means the same number of bytes on any machine.
    """

    max_steps: int
    global_batch_bytes: int
    micro_batch_size: int
    precision: Literal["fp32", "bf16"] = "fp32"
    accelerator: str = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int | Literal["auto"] = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    sharded_checkpoints: bool = False
    activation_checkpointing: bool = False
    gradient_clip: float | None = 1.0
    on_spike: Literal["stop", "skip"] = "stop"
    spike_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "global_batch_bytes", "micro_batch_size", "devices", "num_nodes"):
            value = getattr(self, name)
            if value != "auto":
                _at_least_one(f"trainer.{name}", value)
        for name in ("gradient_clip", "spike_threshold"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"trainer.{name} must be above 0, or null for none, not {value}")

    @property
    def world_size(self) -> int:
        """Processes in all, once `launching.resolve_devices` has counted what is ``auto``."""
        return int(self.devices) * int(self.num_nodes)

    def global_batch_size(self, context_length: int) -> int:
        """Windows per optimizer step.

        Raises:
            UserError: ``global_batch_bytes`` is not a multiple of ``context_length``.
        """
        _at_least_one("context_length", context_length)
        if self.global_batch_bytes % context_length:
            nearest = _nearest_multiples(self.global_batch_bytes, context_length)
            raise UserError(
                f"trainer.global_batch_bytes={self.global_batch_bytes} is no whole number of windows of "
                f"context_length={context_length} bytes: the nearest that are: {nearest}"
            )
        return self.global_batch_bytes // context_length

    def accumulation(self, context_length: int, world_size: int) -> int:
        """Forward passes per optimizer step on each of ``world_size`` devices.

        Raises:
            UserError: the global batch cannot be shared out evenly.
        """
        self.global_batch_size(context_length)
        together = context_length * self.micro_batch_size * world_size
        if self.global_batch_bytes % together:
            nearest = _nearest_multiples(self.global_batch_bytes, together)
            raise UserError(
                f"trainer.global_batch_bytes={self.global_batch_bytes} must be a multiple of {together} "
                f"(context_length {context_length} x micro_batch_size {self.micro_batch_size} x devices "
                f"{world_size}): the nearest that are: {nearest}"
            )
        return self.global_batch_bytes // together


@dataclass
class CallbacksConfig:
    """conf/callbacks: what happens beside the steps, and every how many optimizer steps (0 means never)."""

    log_every: int = 10
    validate_every: int = 100
    validation_bytes: int = 131_072
    sample_every: int = 500
    sample_bytes: int = 256
    sample_prompt: str = ""
    checkpoint_every: int = 500
    checkpoints_kept: int = 2

    def __post_init__(self) -> None:
        for name in ("log_every", "validation_bytes", "checkpoints_kept"):
            _at_least_one(f"callbacks.{name}", getattr(self, name))


@dataclass
class LoggerConfig:
    """conf/logger: where metrics go besides metrics.csv."""

    service: Literal["csv", "wandb", "tensorboard"] = "csv"
    project: str = "mambabyte"
    entity: str | None = None


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} must be 1 or more, not {value}")


def _nearest_multiples(value: int, unit: int) -> str:
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)
