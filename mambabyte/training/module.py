"""The LightningModule: one training step, and the figures that callbacks read from it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional

from mambabyte.checkpoints import FORMAT
from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.training.optimizer import AdamWConfig
from mambabyte.training.sharding import shard, whole_copy

_NEVER = 2**62


class ByteLMModule(LightningModule):
    """Trains a ByteLM by next-byte cross entropy, averaged over the scored bytes of each forward pass.

    What a step measures stays on the device until callbacks log it, so that no step waits for the host.

    Args:
        config: the resolved configuration (plain dict), stored in every checkpoint.
    """

    def __init__(
        self,
        model: ByteLM,
        optimizer: AdamWConfig,
        max_steps: int,
        gradient_clip: float | None,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.validation_bits_per_byte: float | None = None  # set at the steps that validate
        self.seconds_beside_training = 0.0
        self._optimizer_config = optimizer
        self._max_steps = max_steps
        self._gradient_clip = gradient_clip
        self._config = config

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # trainer.strategy=fsdp
            shard(self.model, self.device_mesh["data_parallel"])

    @property
    def whole_model(self) -> ByteLM | None:
        """The model as validation and samples need it, on rank zero. Under FSDP a copy with all weights, None
        on the other ranks, which have to ask for it too."""
        if self.device_mesh is None:
            return self.model
        return whole_copy(self.model, self.trainer.is_global_zero)

    @property
    def training_flops_per_byte(self) -> float:
        """Analytic, in windows of the configured length."""
        return self.model.flops_per_byte(self._config["context_length"]).training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._optimizer_config.build(self.model)

    def on_train_start(self) -> None:
        # a resumed optimizer comes with the settings it was saved with; this command's count
        self._optimizer_config.apply(self.trainer.optimizers[0])
        self._nats = torch.zeros((), device=self.device)
        self._scored = torch.zeros((), dtype=torch.int64, device=self.device)
        self._first_not_finite = torch.full((), _NEVER, dtype=torch.int64, device=self.device)
        self.gradient_norm = torch.zeros((), device=self.device)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        logits = self.model(batch["bytes"], document_start=batch["document_start"])
        targets = batch["targets"].flatten().long()
        nats = functional.cross_entropy(
            logits.float().flatten(0, 1), targets, ignore_index=-100, reduction="sum"
        )
        scored = (targets != -100).sum()
        loss = nats / scored.clamp(min=1)
        self._nats += nats.detach()
        self._scored += scored
        self._watch(loss.detach())
        if "position" in batch:
            # checkpoints are taken between steps only, when every batch that was drawn has been used
            self.trainer.datamodule.trained(batch["position"])  # type: ignore[attr-defined]
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate_at(self.global_step)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *unused: Any, **also_unused: Any
    ) -> None:
        # called before every optimizer step; the norm is measured also when nothing is clipped
        clip = math.inf if self._gradient_clip is None else self._gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._watch(self.gradient_norm)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimizer step ``step``, counted from 0."""
        return self._optimizer_config.learning_rate_at(step, self._max_steps)

    def take_bits_per_byte(self) -> float:
        """Training bits per byte over all bytes scored since the last call, on all ranks."""
        sums = torch.stack((self._nats, self._scored.to(self._nats.dtype)))
        nats, scored = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        self._nats.zero_()
        self._scored.zero_()
        return nats / max(scored, 1) / math.log(2)

    def check_finite(self) -> None:
        """Raise UserError if a loss or a gradient since the start was not a finite number."""
        step = int(self._first_not_finite)
        if step != _NEVER:
            raise UserError(
                f"training diverged: at step {step} the loss or its gradient is not a finite number; the "
                "last checkpoint, if there is one, is from before that and whole: lower "
                "optimizer.learning_rate or trainer.gradient_clip and repeat the command"
            )

    @contextmanager
    def beside_training(self) -> Iterator[None]:
        """What runs inside does not count as training time in bytes per second."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_beside_training += time.perf_counter() - started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mambabyte"] = {
            "format": FORMAT,
            "model": self.model.config.to_dict(),
            "config": self._config,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The number of optimizer steps is all that a loop has to know again. Lightning would also restore how
        # many batches it had drawn, which is wrong as soon as the accumulation differs.
        saved = checkpoint["loops"]["fit_loop"]
        fresh = self.trainer.fit_loop.state_dict()
        steps = "epoch_loop.automatic_optimization.optim_progress"
        checkpoint["loops"] = {"fit_loop": {**fresh, steps: saved[steps]}}

    def _watch(self, value: Tensor) -> None:
        step = self._first_not_finite.clamp(max=self.global_step + 1)
        self._first_not_finite = torch.where(torch.isfinite(value), self._first_not_finite, step)
