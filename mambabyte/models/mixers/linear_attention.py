"""Linear attention (arXiv 2006.16236): softmax(q k) becomes phi(q) phi(k) with phi(x) = elu(x) + 1.

    S_t = S_{t-1} + v_t phi(k_t)^T        z_t = z_{t-1} + phi(k_t)        y_t = S_t phi(q_t) / (z_t phi(q_t))

So a head's state is a matrix and a normaliser, whatever was read. Without a decay it is the recurrence of
`mambabyte.ops.ssd`, which computes it by chunks in time linear in the length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, pad

from mambabyte.config.settings import setting
from mambabyte.models.layers import as_residual
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer
from mambabyte.ops.ssd import ssd


@dataclass
class LinearAttentionConfig(MixerConfig):
    n_head: int = setting(default=4, at_least=1, at_most=10**5)
    epsilon: float = setting(default=1e-6, above=0, at_most=1)  # added to the normaliser

    def check(self, width: int) -> None:
        self.require_multiple(width, "n_head")


class LinearAttention(SequenceMixer):
    """The state is (B, H, h + 1, h): the last row of each head's matrix is its normaliser."""

    resets = True

    def __init__(self, config: LinearAttentionConfig, place: Place) -> None:
        super().__init__()
        self.heads, self.width, self.epsilon = config.n_head, place.width, config.epsilon
        self.qkv = nn.Linear(place.width, 3 * place.width, bias=False)
        self.out_proj = nn.Linear(place.width, place.width, bias=False)

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        qkv = self.qkv(x)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = as_residual(qkv).unflatten(-1, (3 * self.heads, -1)).chunk(3, dim=2)
            with_normaliser = pad(v, (0, 1), value=1.0)
            before = None if state is None else state[0]
            sums, after = ssd(
                with_normaliser, None, elu(k) + 1, elu(q) + 1, before, return_final_state=True,
                document_start=document_start,
            )  # fmt: skip
            y = (sums[..., :-1] / (sums[..., -1:] + self.epsilon)).flatten(2)
        return self.out_proj(y.to(qkv.dtype)), None if state is None else (after,)

    def initial_state(self, batch_size: int) -> MixerState:
        size = self.width // self.heads
        return (self.qkv.weight.new_zeros(batch_size, self.heads, size + 1, size),)

    def flops(self, context_length: int) -> float:
        """The projections, and in the recurrence 4 per state, at any context length."""
        size = self.width // self.heads
        return 8 * self.width**2 + 4 * self.heads * size * (size + 1)


LinearAttentionConfig.mixer = LinearAttention
