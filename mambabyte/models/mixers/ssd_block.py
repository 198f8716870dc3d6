"""The hyperparameters that the blocks of Mamba-2 and Mamba-3 share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.mixers.mixer import MixerConfig


@dataclass
class SSDBlockConfig(MixerConfig):
    """`expand` * width channels in heads of `head_dim`, in `n_groups` that share B and C."""

    name: ClassVar[str]  # of the model, in messages
    d_state: int = setting(default=64, at_least=1, at_most=10**5)
    expand: int = setting(default=2, at_least=1, at_most=10**3)
    head_dim: int = setting(default=64, at_least=1, at_most=10**6)
    n_groups: int = setting(default=1, at_least=1, at_most=10**5)
    chunk: int = setting(default=64, at_least=1, at_most=2**20)
    dt_min: float = setting(default=1e-3, at_least=1e-10, at_most=10**3)
    dt_max: float = setting(default=1e-1, above=0, at_most=10**3)
    dt_init_floor: float = setting(default=1e-4, at_least=1e-10, at_most=10**3)

    def __post_init__(self) -> None:
        self.require_ascending("dt_min", "dt_max")

    @property
    def width_unit(self) -> int:
        heads = self.head_dim * self.n_groups
        return heads // math.gcd(heads, self.expand)

    def check(self, width: int) -> None:
        inner = self.expand * width
        if inner % (self.head_dim * self.n_groups):
            groups = "" if self.n_groups == 1 else f" in each of model.mixer.n_groups={self.n_groups}"
            raise UserError(
                f"{self.name}'s {inner} inner channels, model.mixer.expand={self.expand} times {width}, are "
                f"no whole heads of model.mixer.head_dim={self.head_dim}{groups}"
            )
