"""Causal softmax attention with rotary positions, the Transformer's (`models/layers.py`), over all positions
or a sliding window of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambabyte.config.settings import setting
from mambabyte.models.layers import Attention as AttentionLayer
from mambabyte.models.layers import rotary_factors
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer


@dataclass
class AttentionConfig(MixerConfig):
    n_head: int = setting(default=4, at_least=1, at_most=10**5)
    window: int | None = setting(default=None, at_least=1, at_most=2**62)  # itself included; null: all
    rope_base: float = setting(default=10_000.0, at_least=1, at_most=10**12)

    def check(self, width: int) -> None:
        self.require_multiple(width, "n_head", 2)


class Attention(SequenceMixer):
    """The state is the position (B), and keys and values (B, n, H, h), of the last window - 1 positions if
    there is a window."""

    recurrent = False

    def __init__(self, config: AttentionConfig, place: Place) -> None:
        super().__init__()
        self.width, self.rope_base = place.width, config.rope_base
        self.attention = AttentionLayer(place.width, config.n_head, config.window)

    @property
    def output_projection(self) -> nn.Linear:
        return self.attention.out

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        positions = torch.arange(x.shape[1], device=x.device)
        if state is not None:
            positions = positions + state[0][:, None]
        rotary = rotary_factors(positions, self.width // self.attention.heads, self.rope_base, x.dtype)
        y, cache = self.attention(x, None if state is None else state[1:], rotary)
        return y, None if state is None else (state[0] + x.shape[1], *cache)

    def initial_state(self, batch_size: int) -> MixerState:
        weight, heads = self.attention.out.weight, self.attention.heads
        empty = weight.new_zeros(batch_size, 0, heads, self.width // heads)
        return torch.zeros(batch_size, dtype=torch.int64, device=weight.device), empty, empty

    def flops(self, context_length: int) -> float:
        """The projections, and 4 per channel and key, of which there is a whole context for each position."""
        keys = min(context_length, self.attention.window or context_length)
        return 8 * self.width**2 + 4 * keys * self.width


AttentionConfig.mixer = Attention
