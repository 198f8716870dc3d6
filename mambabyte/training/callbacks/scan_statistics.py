"""How fast a Mamba model's scans forget: step sizes and decay rates during training."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import linear, softplus
from torch.utils.hooks import RemovableHandle

from mambabyte.models.lora import weight_of
from mambabyte.models.mamba import Mixer
from mambabyte.training.callbacks.step_callback import StepCallback
from mambabyte.training.module import ByteLMModule

NAMES = ("delta_mean", "delta_minimum", "delta_maximum", "A_mean", "A_minimum", "A_maximum")


class ScanStatistics(StepCallback):
    """Mean, minimum and maximum of delta and A over all layers, on rank 0.

    ``delta`` is the step size softplus(dt_proj(x) + bias) of every byte of one training window and every
    channel. ``A`` = -exp(A_log) is the decay rate of every channel and state; a byte scales the state by
    exp(delta A). Only steps that ``is_logged`` names are measured. Models without such scans add no columns.
    This callback must come before any other that runs the model.
    """

    def __init__(self, is_logged: Callable[[int], bool]) -> None:
        self._is_logged = is_logged
        self._hooks: list[RemovableHandle] = []
        self._measured: dict[Mixer, Tensor] = {}  # of each layer, in the order of NAMES
        self._columns: dict[str, float | None] = {}

    def columns(self) -> dict[str, float | None]:
        return self._columns

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *unused: Any) -> None:
        if self._hooks or not trainer.is_global_zero or not self._is_logged(trainer.global_step + 1):
            return
        for part in module.modules():
            if isinstance(part, Mixer):
                self._hooks.append(part.x_proj.register_forward_hook(partial(self._measure, part)))

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._columns = {}
        if self._measured:
            means, minima, maxima = torch.stack([*self._measured.values()]).view(-1, 2, 3).unbind(-1)
            overall = torch.stack((means.mean(0), minima.amin(0), maxima.amax(0)), dim=-1)
            self._columns = dict(zip(NAMES, overall.flatten().tolist(), strict=True))
            self._measured.clear()

    @torch.no_grad()
    def _measure(self, mixer: Mixer, x_proj: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        projected = linear(output[:1, :, : mixer.rank], weight_of(mixer.dt_proj))
        delta = softplus(projected.float() + mixer.dt_proj.bias.float())
        rates = -torch.exp(mixer.A_log.float())
        statistics = [f() for t in (delta, rates) for f in (t.mean, t.amin, t.amax)]
        self._measured[mixer] = torch.stack(statistics)
