"""Optimizers and their learning rates: linear warm-up and cosine decay (the recipe of arXiv 2401.13660,
section 4), or warm-up, a constant rate and a late linear decay (WSD, arXiv 2404.06395, section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mambabyte.config.settings import TargetSettings, setting
from mambabyte.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class OptimizerConfig(TargetSettings):
    """conf/optimizer: the schedule that all optimizers share. The learning rate depends on the step alone,
    so a resumed run has no schedule to restore.

    To use an optimizer of your own, derive a dataclass from this one and name it by ``optimizer._target_``.
    """

    section: ClassVar[str] = "optimizer"
    learning_rate: float = setting(above=0, at_most=10**6)
    warmup_steps: int = setting(at_least=0, at_most=10**9)
    final_learning_rate_ratio: float = setting(default=0.1, at_least=0, at_most=1)
    decay_from: int | None = setting(default=None, at_least=0, at_most=10**9)

    @classmethod
    def from_settings(cls, values: Any, where: str) -> TargetSettings:
        """As `TargetSettings.from_settings`; without a ``_target_``, as before there was one, it is AdamW."""
        if isinstance(values, Mapping) and "_target_" not in values:
            values = {"_target_": AdamWConfig.target(), **values}
        return super().from_settings(values, where)

    def learning_rate_at(self, step: int, max_steps: int | None) -> float:
        """The learning rate of optimizer step ``step`` (from 0): linear to the peak over ``warmup_steps``,
        then a cosine to ``final_learning_rate_ratio`` of the peak at ``max_steps``.

        With ``decay_from``, it stays as it is at that step, and from there falls linearly to that ratio.
        While ``max_steps`` is None, not decided yet, it does not fall.
        """
        until = step if self.decay_from is None else min(step, self.decay_from)
        rate, ratio = self.learning_rate, self.final_learning_rate_ratio
        if until < self.warmup_steps:
            rate = self.learning_rate * (until + 1) / self.warmup_steps
        begin = self.warmup_steps if self.decay_from is None else self.decay_from
        if max_steps is None or step < begin:
            return rate
        done = min(1.0, (step - begin) / max(1, max_steps - begin))
        left = (1 + math.cos(math.pi * done)) / 2 if self.decay_from is None else 1 - done
        return rate * (ratio + (1 - ratio) * left)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the model's trainable parameters."""
        raise NotImplementedError

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Set these hyperparameters on an optimizer of :meth:`build` whose state came from a checkpoint."""


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (arXiv 1711.05101); weight decay is for matrices only."""

    betas: tuple[float, float] = setting(default=(0.9, 0.95), at_least=0, below=1)
    weight_decay: float = setting(default=0.1, at_least=0, at_most=10**6)

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        import torch

        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # without multipliers two groups, as in checkpoints from before there were any
        multipliers = dict.fromkeys(map(multiplier_of, trainable)) or {1.0: None}
        groups = [
            {"params": [p for p in trainable if multiplier_of(p) == multiplier and is_decayed(p) == decayed]}
            for multiplier in multipliers
            for decayed in (True, False)
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, fused=True)
        self.apply(optimizer)
        return optimizer

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        for index, group in enumerate(optimizer.param_groups):
            group["betas"] = self.betas
            group["weight_decay"] = 0.0 if index % 2 else self.weight_decay
        # the fused kernel reads past the end of moments that are shorter than their parameter
        for parameter, state in optimizer.state.items():
            if any(state[moment].shape != parameter.shape for moment in ("exp_avg", "exp_avg_sq")):
                raise ValueError("the optimizer's moments have other shapes than the model's weights")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's learning rate: ``rate`` times the multiplier that the model gives its weights.

    Raises:
        UserError: a group of weights with several multipliers.
    """
    for group in optimizer.param_groups:
        multipliers = set(map(multiplier_of, group["params"])) or {1.0}
        if len(multipliers) > 1:
            raise UserError(
                "this model has learning-rate multipliers, and the optimizer has weights of several of them "
                "in one group: make a group for each, or set model.learning_rate_multipliers=null"
            )
        group["lr"] = rate * multipliers.pop()


def multiplier_of(parameter: nn.Parameter) -> float:
    """What a model wants the learning rate of a weight multiplied with."""
    return getattr(parameter, "_learning_rate_multiplier", 1.0)


def is_decayed(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms and what a model exempts."""
    return parameter.ndim >= 2 and not getattr(parameter, "_no_weight_decay", False)
