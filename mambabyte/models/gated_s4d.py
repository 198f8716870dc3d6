"""Gated S4D: a diagonal state space model (S4D, arXiv 2206.11893) in a gated block. A reconstruction.

MambaByte's paper names this baseline without giving equations, and no public code has exactly it. This is the
block of BiGS (arXiv 2212.10544, by the same first author) without its backward branch, close to GSS (arXiv
2206.13947):

    out = W_o( gelu(W_l S4D(gelu(W_u x))) * gelu(W_v x) )        added to the residual stream

S4D, with A_n initialised to -1/2 + i pi n, is that of `mambabyte/models/mixers/s4d.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layer_stack import LayerStack
from mambabyte.models.layers import ResidualNorm
from mambabyte.models.mixers.s4d import S4D


@dataclass
class GatedS4DConfig(ByteLMConfig):
    d_model: int = setting(default=192, at_least=1, at_most=10**6)
    n_layer: int = setting(default=4, at_least=1, at_most=10**4)
    d_state: int = setting(default=64, at_least=1, at_most=10**5)  # N, in conjugate pairs
    d_ff: int | None = setting(default=None, at_least=1, at_most=10**7)  # 3 * d_model when null
    dt_min: float = setting(default=1e-3, at_least=1e-10, at_most=10**3)
    dt_max: float = setting(default=1e-1, above=0, at_most=10**3)
    norm_epsilon: float = setting(default=1e-5, at_least=1e-12, at_most=1)
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.d_state % 2:
            raise UserError(f"model.d_state={self.d_state} must be even: its states are conjugate pairs")
        self.require_ascending("dt_min", "dt_max")

    @property
    def inner(self) -> int:
        return self.d_ff or 3 * self.d_model


class GatedBlock(nn.Module):
    def __init__(self, config: GatedS4DConfig) -> None:
        super().__init__()
        self.width = config.d_model
        self.norm = ResidualNorm(config.d_model, config.norm_epsilon, rms=True)
        self.in_proj = nn.Linear(config.d_model, config.d_model + config.inner, bias=False)  # W_u and W_v
        self.s4d = S4D(config.d_model, config.d_state, config.dt_min, config.dt_max)
        self.mix = nn.Linear(config.d_model, config.inner, bias=False)  # W_l
        self.out_proj = nn.Linear(config.inner, config.d_model, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(config.n_layer))

    def forward(
        self, residual: Tensor, update: Tensor | None, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        normed, residual = self.norm(residual, update)
        projected = gelu(self.in_proj(normed))
        u, gate = projected.split([self.width, projected.shape[-1] - self.width], dim=-1)
        y, after = self.s4d(u, state)
        return residual, self.out_proj(gelu(self.mix(y.to(self.mix.weight.dtype))) * gate), after


class GatedS4D(LayerStack):
    """The state is (B, d, N/2, 2) per layer, at any length."""

    config: GatedS4DConfig
    recurrent = True

    def __init__(self, config: GatedS4DConfig) -> None:
        super().__init__(config, (GatedBlock(config) for _ in range(config.n_layer)))

    def initial_state(self, batch_size: int) -> State:
        shape = (batch_size, self.config.d_model, self.config.d_state // 2, 2)
        return [(self.embedding.weight.new_zeros(shape),) for _ in self.layers]

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """Matrix products and the recurrence, 12 per pair of states (6 + 2 + 4 for decay, input and output),
        at any context length. Training by FFT costs about as much: 20 log2(2 context_length) per channel."""
        d, inner, pairs = self.config.d_model, self.config.inner, self.config.d_state // 2
        layer = 2 * (d * (d + inner) + 2 * d * inner) + 12 * d * pairs
        return self.flops(self.config.n_layer * layer + 2 * d * VOCABULARY)


GatedS4DConfig.model = GatedS4D
