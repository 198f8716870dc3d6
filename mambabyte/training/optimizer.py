"""AdamW with linear warm-up and cosine decay (the recipe of arXiv 2401.13660, section 4)."""

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from mambabyte.errors import UserError


@dataclass
class AdamWConfig:
    """conf/optimizer. The learning rate depends on the step alone: resuming has no schedule to restore."""

    learning_rate: float
    warmup_steps: int
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.1
    final_learning_rate_ratio: float = 0.1

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must be two numbers from 0 to below 1, not {list(self.betas)}")
        for name in ("learning_rate", "warmup_steps", "weight_decay", "final_learning_rate_ratio"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer.{name} must be 0 or more, not {getattr(self, name)}")

    def learning_rate_at(self, step: int, max_steps: int) -> float:
        """The learning rate of optimizer step ``step`` (from 0): linear to the peak over ``warmup_steps``,
        then a cosine to ``final_learning_rate_ratio`` of the peak at ``max_steps``."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        ratio = self.final_learning_rate_ratio
        return self.learning_rate * (ratio + (1 - ratio) * (1 + math.cos(math.pi * done)) / 2)

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """The optimizer over the model's trainable parameters, in two groups: decayed and not."""
        decayed: list[nn.Parameter] = []
        exempt: list[nn.Parameter] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                (decayed if is_decayed(parameter) else exempt).append(parameter)
        groups = [{"params": decayed}, {"params": exempt}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, fused=True)
        self.apply(optimizer)
        return optimizer

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the hyperparameters on an optimizer of :meth:`build` whose state came from a checkpoint."""
        for group, weight_decay in zip(optimizer.param_groups, (self.weight_decay, 0.0), strict=True):
            group["betas"] = tuple(self.betas)
            group["weight_decay"] = weight_decay


def is_decayed(parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices and convolutions: not for biases, norms, or what a model marks exempt."""
    return parameter.ndim >= 2 and not getattr(parameter, "_no_weight_decay", False)
