"""How fast a Mamba model's scans forget: its step sizes and decay rates while it trains."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import linear, softplus
from torch.utils.hooks import RemovableHandle

from mambabyte.models.mamba import Mixer
from mambabyte.training.callbacks.step_callback import StepCallback
from mambabyte.training.module import ByteLMModule

NAMES = ("delta_mean", "delta_minimum", "delta_maximum", "A_mean", "A_minimum", "A_maximum")


class ScanStatistics(StepCallback):
    """Looks at a window on its way through the model in training, at the steps that ``is_logged``.

    ``delta`` is the step size softplus(dt_proj(x) + bias), of every byte of that window and every channel;
    ``A`` = -exp(A_log) is the rate of every channel and state, which shrinks by exp(delta A) at a byte. Both
    are over all layers, on rank zero. Models without such scans have neither. Must see a step before anything
    else that runs the model.
    """

    def __init__(self, is_logged: Callable[[int], bool]) -> None:
        self._is_logged = is_logged
        self._hooks: list[RemovableHandle] = []
        self._seen: dict[Mixer, Tensor] = {}  # of each layer, in the order of NAMES

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *unused: Any) -> None:
        if self._hooks or not trainer.is_global_zero or not self._is_logged(trainer.global_step + 1):
            return
        for part in module.modules():
            if isinstance(part, Mixer):
                self._hooks.append(part.x_proj.register_forward_hook(self._hook(part)))

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._seen:
            means, minima, maxima = torch.stack([*self._seen.values()]).view(-1, 2, 3).unbind(-1)
            together = torch.stack((means.mean(0), minima.amin(0), maxima.amax(0)), dim=-1)
            module.scan_statistics = dict(zip(NAMES, together.flatten().tolist(), strict=True))
            self._seen.clear()

    def _hook(self, mixer: Mixer) -> Callable[..., None]:
        @torch.no_grad()
        def look(x_proj: torch.nn.Module, inputs: Any, output: Tensor) -> None:
            projected = linear(output[:1, :, : mixer.rank], mixer.dt_proj.weight)
            delta = softplus(projected.float() + mixer.dt_proj.bias.float())
            rates = -torch.exp(mixer.A_log.float())
            self._seen[mixer] = torch.stack([f() for t in (delta, rates) for f in (t.mean, t.amin, t.amax)])

        return look
