"""S6, the selective state space model of Mamba (arXiv 2312.00752, section 3.2), on its own: `block=mamba`
puts Mamba's projections, convolution and gate around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mambabyte.config.settings import setting
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer
from mambabyte.models.selective_state_space import SelectiveStateSpace, scan_flops


@dataclass
class S6Config(MixerConfig):
    d_state: int = setting(default=16, at_least=1, at_most=10**5)
    dt_rank: int | None = setting(default=None, at_least=1, at_most=10**6)  # ceil(d_model / 16) when null
    dt_min: float = setting(default=1e-3, at_least=1e-10, at_most=10**3)
    dt_max: float = setting(default=1e-1, above=0, at_most=10**3)

    def __post_init__(self) -> None:
        self.require_ascending("dt_min", "dt_max")


class S6(SequenceMixer, SelectiveStateSpace):
    """The state is the scan's (B, D, N)."""

    resets = True

    def __init__(self, config: S6Config, place: Place) -> None:
        super().__init__()
        self.add_scan(place.width, config.dt_rank or math.ceil(place.d_model / 16), config.d_state)
        self.initialise_scan(config.dt_min, config.dt_max)

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        y, after = self.scan(x, None, None if state is None else state[0], document_start)
        return y, None if state is None else (after,)

    def initial_state(self, batch_size: int) -> MixerState:
        return (self.D.new_zeros(batch_size, *self.A_log.shape),)

    def flops(self, context_length: int) -> float:
        return scan_flops(len(self.D), self.rank, self.d_state)


S6Config.mixer = S6
