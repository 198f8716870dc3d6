"""Estimating the memory of a training step without running it, and whether the device has enough."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mambabyte.errors import UserError
from mambabyte.models import ByteLM, ByteLMConfig
from mambabyte.models.byte_lm import VOCABULARY
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.models.meta_device import on_meta_device
from mambabyte.runtime.memory import available_memory
from mambabyte.runtime.units import byte_count
from mambabyte.training.activation_checkpointing import checkpoint_activations
from mambabyte.training.initial_weights import trainable_model
from mambabyte.training.settings import TrainerSettings, TrainSettings

LAYERS = ("n_layer", "local_n_layer")
_WEIGHT_BYTES = 4  # fp32, also where the arithmetic is bf16
_COMFORTABLE = 0.75  # of the available memory: allocators and kernels need more than is counted here


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, without the blocks that FSDP, which shards all but activations, gathers briefly.

    Attributes:
        gradients: doubled under DDP: in a process's first step they are not in its buckets yet.
        optimizer: AdamW's two moments.
        activations: the peak of everything else during one micro-batch's forward and backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def state(self) -> int:
        """What a step needs regardless of its micro-batch size."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.state + self.activations


class MemoryBudget:
    """The memory that a run's steps need, and the memory that its device has.

    Args:
        settings: with resolved devices; micro_batch_size is ignored.
        lora, freeze: what of the model is trained, as `trainable_model` has it.

    Attributes:
        available: the device's bytes for this process; None if the system does not report them.
    """

    def __init__(
        self, config: ByteLMConfig, settings: TrainerSettings, context_length: int,
        lora: LoraSettings | None = None, freeze: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.device = training_device(settings.accelerator)
        memory = available_memory(self.device)
        sharing = int(settings.devices) if self.device.type == "cpu" else 1
        self.available = None if memory is None else memory // sharing
        self._place = "the GPU" if self.device.type == "cuda" else "this machine"
        self.config, self._settings, self._context_length = config, settings, context_length
        self._trained = lora, freeze
        self._activations = functools.cache(self._peak_of_a_pass)

    @classmethod
    def of(cls, settings: TrainSettings) -> MemoryBudget:
        """The memory budget of a run with resolved devices."""
        return cls(settings.model, settings.trainer, settings.context_length, settings.lora, settings.freeze)

    @functools.cached_property
    def state(self) -> MemoryEstimate:
        """The estimate without activations."""
        size = trained = num_parameters(self.config)
        if any(self._trained):
            model = on_meta(self.config, *self._trained)
            size = model.num_parameters()
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        ranks = self._settings.world_size
        sharded = ranks > 1 and self._settings.strategy == "fsdp"
        weights, gradients = (_WEIGHT_BYTES * n // (ranks if sharded else 1) for n in (size, trained))
        buckets = gradients if ranks > 1 and not sharded else 0
        return MemoryEstimate(weights, gradients + buckets, optimizer=2 * gradients, activations=0)

    def estimate(self, micro_batch_size: int) -> MemoryEstimate:
        """Extrapolated from one and two windows: activations grow linearly."""
        activations = one = self._activations(1)
        if micro_batch_size > 1:
            activations += (micro_batch_size - 1) * (self._activations(2) - one)
        return replace(self.state, activations=activations)

    def fits(self, micro_batch_size: int) -> bool:
        """Whether a step fits with memory to spare."""
        return self.available is None or (
            self.estimate(micro_batch_size).total <= _COMFORTABLE * self.available
        )

    def check_least(self) -> None:
        """Raise UserError if not even weights, gradients, optimizer and one micro-batch's logits, with their
        gradient, fit. Cheap."""
        self._check_state()
        windows = int(self._settings.micro_batch_size)
        logits = 2 * _WEIGHT_BYTES * VOCABULARY * windows * self._context_length
        if self.available is not None and self.state.state + logits > self.available:
            raise UserError(
                f"the logits of {windows:,} windows of {self._context_length:,} bytes alone take "
                f"{byte_count(logits)}, and {self._place} has {byte_count(self.available)} left: lower "
                "trainer.micro_batch_size or context_length"
            )

    def _check_state(self) -> None:
        if self.available is not None and self.state.state > self.available:
            raise UserError(
                f"weights, gradients and optimizer state alone take {byte_count(self.state.state)}, and "
                f"{self._place} has {byte_count(self.available)} left: choose a smaller model, another "
                "machine, or trainer=fsdp over several GPUs"
            )

    def check(self, micro_batch_size: int) -> None:
        """Raise UserError, saying what to change, if a step with such micro-batches does not fit."""
        self._check_state()
        if self.available is not None and self.estimate(micro_batch_size).total > self.available:
            self.refuse(micro_batch_size)

    def refuse(self, micro_batch_size: int) -> NoReturn:
        """Raise the UserError of :meth:`check`."""
        self._check_state()
        smaller = [size for size in range(1, micro_batch_size) if micro_batch_size % size == 0]
        fitting = [size for size in smaller if self.fits(size)]
        remedies = [f"set trainer.micro_batch_size={fitting[-1]}"] if fitting else []
        if not self._settings.activation_checkpointing:
            remedies.append("set trainer.activation_checkpointing=true")
        remedies.append("lower context_length")
        estimate, available = self.estimate(micro_batch_size), self.available or 0
        margin, usable = "", int(_COMFORTABLE * available)
        if usable < estimate.total <= available:
            margin = (
                f" ({byte_count(usable)} without the quarter that trainer.micro_batch_size=auto keeps free)"
            )
            remedies.append(f"try it by trainer.micro_batch_size={micro_batch_size}")
        raise UserError(
            f"a step at trainer.micro_batch_size={micro_batch_size} takes {byte_count(estimate.total)}, "
            f"{byte_count(estimate.activations)} of it activations, and {self._place} has "
            f"{byte_count(available)} left{margin}: {', or '.join(remedies)}"
        )

    def _peak_of_a_pass(self, micro_batch_size: int) -> int:
        settings = replace(self._settings, micro_batch_size=micro_batch_size)
        return peak_of_a_pass(self.config, settings, self._context_length, self.device, *self._trained)


def training_device(accelerator: str) -> torch.device:
    """The device that this process trains on with ``trainer.accelerator``."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def peak_of_a_pass(
    config: ByteLMConfig, settings: TrainerSettings, context_length: int, device: torch.device,
    lora: LoraSettings | None = None, freeze: Sequence[str] = (),
) -> int:  # fmt: skip
    """The peak bytes of one micro-batch's forward and backward pass on ``device``, without weights and
    gradients. The device itself is not used.

    The pass runs on PyTorch's fake tensors, which have shapes but no data, and counts the storages that they
    would allocate. What a kernel allocates internally is not counted (PyTorch's LSTM on a CPU: several times
    the estimate). Each window counts as one document.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    shape = int(settings.micro_batch_size), context_length
    # not from fake tensors: an initialization may read the numbers it draws
    model = on_meta(config, lora, freeze)
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(model, device)
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.grad = torch.zeros_like(parameter)  # left by the previous micro-batch
        with LiveStorages() as live:
            bytes = torch.zeros(shape, dtype=torch.uint8, device=device)
            targets = torch.zeros(shape, dtype=torch.int16, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                nats, auxiliary = model.training_loss(bytes, targets)
            (nats.mean() if auxiliary is None else nats.mean() + auxiliary).backward()
    return live.peak


def num_parameters(config: ByteLMConfig) -> int:
    """The model's number of parameters. Of our own models, which are linear in their layers, at most two of
    each kind are built: ten thousand would take half a minute, even without memory. Of a layout that repeats,
    less than three repetitions are."""
    period = getattr(config, "period", 1)
    layers = [f.name for f in fields(config) if f.name in LAYERS and getattr(config, f.name) >= 3 * period]
    if not (config.target().startswith("mambabyte.models.") and layers):
        return on_meta(config).num_parameters()
    name, count = layers[0], getattr(config, layers[0])
    few = period + count % period
    one, two = (num_parameters(replace(config, **{name: n})) for n in (few, few + period))
    return one + (count - few) // period * (two - one)


def on_meta(config: ByteLMConfig, lora: LoraSettings | None = None, freeze: Sequence[str] = ()) -> ByteLM:
    """The model of `trainable_model` on PyTorch's meta device: shapes without memory."""
    with on_meta_device():
        return trainable_model(config, lora, freeze)


def make_fake(model: nn.Module, device: torch.device) -> None:
    """Replace a meta model's tensors with empty ones on ``device``; shared tensors stay shared."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in made:
                    empty = torch.empty_like(tensor, device=device)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                tensors[name] = None if tensor is None else made[tensor]  # type: ignore[assignment]


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operators allocate within the block: ``live``, those alive now, and
    ``peak``, the most that were."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = function(*args, **(kwargs or {}))
        for storage in {x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor)} - given:
            if storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._release, storage.nbytes())
        return out

    def _release(self, size: int) -> None:
        self.live -= size
