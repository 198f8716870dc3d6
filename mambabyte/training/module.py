"""The LightningModule: a training step and its measurements."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor

from mambabyte.checkpoints import FORMAT
from mambabyte.config.settings import to_plain
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import NOT_SCORED
from mambabyte.runtime.process_group import add_over_ranks
from mambabyte.training.activation_checkpointing import checkpoint_activations
from mambabyte.training.distributed.fsdp import shard, unsharded_copy
from mambabyte.training.initial_weights import trainable_model
from mambabyte.training.optimizer import set_learning_rate
from mambabyte.training.settings import TrainSettings
from mambabyte.training.spikes import SpikeDetector, SpikePolicy
from mambabyte.training.time_budget import End


class ByteLMModule(LightningModule):
    """Trains a ByteLM by next-byte cross entropy: a step minimises its nats over its scored bytes, those of
    the whole global batch, however micro-batches and ranks split it. What a model minimises besides is
    averaged over micro-batches, each weighted by its scored bytes.

    How many bytes a step scores is known only at its end, so each micro-batch's loss counts every byte of its
    windows as scored, and the step's gradient is corrected by the ratio before it is clipped.

    Lightning calls training_step for each micro-batch, then on_before_optimizer_step,
    configure_gradient_clipping and the optimizer's step. Measurements stay on the device until callbacks log
    them, so that no step waits for the host.

    Args:
        config: the configuration to store in every checkpoint.
        policy: what to do about spikes in loss or gradient; None if :meth:`check_spikes` is never called.

    Attributes:
        config: that configuration, with the end of the run once it is decided.
        seconds_excluded: spent within :meth:`excluded_from_timing`.
        has_trained: whether an optimizer step was taken since training began or was resumed.
    """

    def __init__(
        self, settings: TrainSettings, config: dict[str, Any], policy: SpikePolicy | None = None
    ) -> None:
        super().__init__()
        self.model = trainable_model(settings.model, settings.lora, settings.freeze)
        if settings.trainer.activation_checkpointing:
            checkpoint_activations(self.model)
        self.seconds_excluded = 0.0
        self.has_trained = False
        self._dropout_step: int | None = None
        self._settings = settings
        self._clip = settings.trainer.gradient_clip or math.inf
        self._batch_bytes = settings.trainer.global_batch_bytes
        self.config = config
        self._policy = policy
        self._restored: dict[str, Any] | None = None

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # trainer.strategy=fsdp
            in_bf16 = self._settings.trainer.precision == "bf16"
            shard(self.model, self.device_mesh["data_parallel"], in_bf16)

    @property
    def unsharded_model(self) -> ByteLM | None:
        """The model with all its weights on rank 0, None on the others. Every rank must access it: under FSDP
        it is gathered from all, and adapters are merged."""
        main = self.trainer.is_global_zero
        if self.device_mesh is None:
            return self.model if main else None
        return unsharded_copy(self.model, main, self._settings.lora)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._settings.optimizer.build(self.model)

    def on_train_start(self) -> None:
        # a resumed optimizer has the hyperparameters it was saved with
        self._settings.optimizer.apply(self.trainer.optimizers[0])
        self.gradient_norm = torch.zeros((), device=self.device)
        self._step_sums = torch.zeros(2, device=self.device)  # nats, scored bytes of this rank in this step
        # nats, scored bytes, steps, clipped steps of all ranks since the last row of metrics
        self._row_sums = torch.zeros(4, device=self.device)
        self._spikes = SpikeDetector(self._settings.trainer.spike_threshold, self.device)
        if self._restored is not None:
            self._row_sums.copy_(self._restored["row_sums"])
            self._spikes.load_state_dict(self._restored["spikes"])

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        marks = batch["document_start"].numpy()  # on the host, where nothing waits
        # A mark at the first byte changes nothing, and most windows have no other.
        batch = {**batch, "marked": bool(marks[:, 1:].any())}
        if self.model.reads_marks_on_host:
            batch["document_start"] = marks  # which nothing moves to the device
        return batch

    def on_train_batch_start(self, batch: dict[str, Any], batch_index: int) -> None:
        lora, step = self._settings.lora, self.global_step
        if lora is not None and lora.dropout and step != self._dropout_step:
            self._dropout_step = step  # each step its own masks, also those of a resumed run
            seed = np.random.SeedSequence((self._settings.seed, step, self.global_rank))
            torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        document_start = batch["document_start"] if batch["marked"] else None
        targets = batch["targets"]
        nats, auxiliary = self.model.training_loss(batch["bytes"], targets, document_start)
        nats = nats.sum(dim=1)
        scored = (targets != NOT_SCORED).sum(dim=1)
        sums = torch.stack((nats.sum(), scored.sum()))
        self._step_sums += sums.detach()
        self._spikes.record(self.global_step + 1, batch, nats.detach(), scored)
        if "position" in batch:
            # checkpoints are saved between steps, when every batch drawn has been used
            self.trainer.datamodule.trained(batch["position"])  # type: ignore[attr-defined]
        # accumulation and ranks average these: the step's gradient is that of its nats / global_batch_bytes
        loss = sums[0] if auxiliary is None else sums[0] + auxiliary * sums[1]
        return loss / targets.numel()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        # under DDP, gradients are views of its buckets, and None would let go of them
        in_buckets = self.trainer.world_size > 1 and self.device_mesh is None
        optimizer.zero_grad(set_to_none=not in_buckets)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.has_trained = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        set_learning_rate(optimizer, self.learning_rate_at(self.global_step))

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        sums = torch.cat((self._step_sums, norm[None]))
        nats, scored, norms = add_over_ranks(sums)  # so all ranks decide alike
        self._step_sums.zero_()
        per_scored_byte = self._batch_bytes / scored.clamp(min=1)
        self.gradient_norm = per_scored_byte * norms / self.trainer.world_size
        clipping = (self._clip / (self.gradient_norm + 1e-6)).clamp(max=1)  # as clip_grad_norm_ does
        own = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
        torch._foreach_mul_(own, per_scored_byte * clipping)
        skip = self._spikes.judge(self.global_step + 1, nats / scored.clamp(min=1), self.gradient_norm)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # for gradient scalers: PyTorch's fused optimizers skip a step for which this is 1
            optimizer.found_inf = skip  # type: ignore[attr-defined]
        elif skip:  # waits for the device; optimizers ignore parameters without gradients
            optimizer.zero_grad(set_to_none=True)
        counted = nats.isfinite()
        clipped = (self.gradient_norm > self._clip) & (skip == 0)
        row = torch.stack((nats, scored, torch.ones_like(nats), clipped.float()))
        self._row_sums += torch.where(counted, row, 0.0)

    @property
    def max_steps(self) -> int | None:
        """The optimizer steps of the run; None while ``budget.training_seconds`` has not decided them."""
        return self._settings.trainer.max_steps

    def decide(self, end: End) -> None:
        """Let the learning rate fall and training end at the steps of ``end``. Every rank must call this."""
        self._settings = end.applied_to(self._settings)
        self.config = end.recorded_in(self.config)
        self.trainer.fit_loop.epoch_loop.max_steps = end.max_steps

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimizer step ``step``, counted from 0."""
        return self._settings.optimizer.learning_rate_at(step, self._settings.trainer.max_steps)

    def row(self) -> dict[str, float]:
        """Training bits per byte since :meth:`begin_row`, over all ranks (nan if no byte was scored), the
        share of these steps whose gradient was clipped, and the skipped steps of the whole run."""
        nats, scored, steps, clipped = self._row_sums.tolist()
        return {
            "bits_per_byte": nats / scored / math.log(2) if scored else math.nan,
            "clipped_share": clipped / max(steps, 1),
            "skipped_steps": self._spikes.skipped_steps,
        }

    def begin_row(self) -> None:
        """Count from the next step on for another row of metrics."""
        self._row_sums.zero_()

    def check_spikes(self, wait: bool) -> None:
        """Apply the policy to newly detected spikes; with ``wait``, to all up to this step.

        Raises:
            UserError: the policy stops the run.
        """
        assert self._policy is not None
        for spike in self._spikes.found(wait):
            self._policy.apply(spike, self.trainer)

    @contextmanager
    def excluded_from_timing(self) -> Iterator[None]:
        """Leave the block's time out of the training time and of bytes per second."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_excluded += time.perf_counter() - started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mambabyte"] = {
            "format": FORMAT,
            "model": self.model.config.to_dict(),
            "lora": to_plain(self._settings.lora),
            "config": self.config,
            "training": {"row_sums": self._row_sums, "spikes": self._spikes.state_dict()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint["mambabyte"].get("training")  # early versions wrote none
        # Restore only the number of optimizer steps: Lightning's number of batches drawn is wrong if the
        # accumulation differs.
        saved = checkpoint["loops"]["fit_loop"]
        fresh = self.trainer.fit_loop.state_dict()
        steps = "epoch_loop.automatic_optimization.optim_progress"
        checkpoint["loops"] = {"fit_loop": {**fresh, steps: saved[steps]}}
