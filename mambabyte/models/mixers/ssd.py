"""SSD, the selective state space model of Mamba-2 (arXiv 2405.21060), on its own.

    a_t = exp(dt_t A)      h_t = a_t h_{t-1} + dt_t x_t B_t^T      y_t = h_t C_t + D x_t

A and dt are one number for each head of P channels, and B and C, which come from the input, are shared by
all heads. `block=mamba` puts Mamba's projections, convolution and gate around it. Mamba-2's own block,
`mamba2.py`, is another: there B, C and dt are projected from the block's input, and a norm follows the gate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mambabyte.config.settings import setting
from mambabyte.models.layers import as_residual
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer
from mambabyte.models.selective_state_space import step_size_bias
from mambabyte.ops.ssd import ssd


@dataclass
class SSDConfig(MixerConfig):
    d_state: int = setting(default=64, at_least=1, at_most=10**5)
    n_head: int = setting(default=4, at_least=1, at_most=10**5)
    chunk: int = setting(default=64, at_least=1, at_most=2**20)
    dt_min: float = setting(default=1e-3, at_least=1e-10, at_most=10**3)
    dt_max: float = setting(default=1e-1, above=0, at_most=10**3)

    def __post_init__(self) -> None:
        self.require_ascending("dt_min", "dt_max")

    def check(self, width: int) -> None:
        self.require_multiple(width, "n_head")


class SSD(SequenceMixer):
    """The state is (B, H, P, N)."""

    resets = True

    def __init__(self, config: SSDConfig, place: Place) -> None:
        super().__init__()
        self.heads, self.width = config.n_head, place.width
        self.d_state, self.chunk = config.d_state, config.chunk
        self.x_proj = nn.Linear(place.width, 2 * config.d_state + config.n_head, bias=False)
        self.dt_bias = nn.Parameter(step_size_bias(torch.empty(config.n_head), config.dt_min, config.dt_max))
        # Mamba-2's: uniform in [1, 16]
        self.A_log = nn.Parameter(torch.log(1 + 15 * torch.rand(config.n_head)))
        self.D = nn.Parameter(torch.ones(config.n_head))
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        projected = self.x_proj(x)
        with torch.autocast(x.device.type, enabled=False):
            sizes = [self.d_state, self.d_state, self.heads]
            B, C, dt = as_residual(projected).split(sizes, dim=-1)
            dt = softplus(dt + self.dt_bias)
            heads = as_residual(x).unflatten(-1, (self.heads, -1))
            y, after = ssd(
                heads * dt.unsqueeze(-1), -dt * as_residual(self.A_log).exp(), B.unsqueeze(2), C.unsqueeze(2),
                None if state is None else state[0], return_final_state=True, document_start=document_start,
                chunk=self.chunk,
            )  # fmt: skip
            y = y + heads * self.D.unsqueeze(-1)
        return y.flatten(2).to(x.dtype), None if state is None else (after,)

    def initial_state(self, batch_size: int) -> MixerState:
        return (self.D.new_zeros(batch_size, self.heads, self.width // self.heads, self.d_state),)

    def flops(self, context_length: int) -> float:
        """The projection, and in the recurrence 6 per state, at any context length."""
        return 2 * self.width * (2 * self.d_state + self.heads) + 6 * self.width * self.d_state


SSDConfig.mixer = SSD
