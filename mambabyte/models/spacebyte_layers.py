"""The layers of SpaceByte, with the authors' names: see `mambabyte/models/spacebyte.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad, scaled_dot_product_attention

from mambabyte.models.byte_lm import VOCABULARY
from mambabyte.models.layers import (
    QUERY_BLOCK,
    Cache,
    apply_rotary,
    attention_with_cache,
    causal_attention,
)
from mambabyte.ops import residual_norm


class LayerNorm(nn.Module):
    """Add an update to the residual stream and normalise the sum x: returns (norm(x), x)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, residual: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        return residual_norm(residual, update, self.scale, None, self.epsilon, rms=False)

    def of_heads(self, x: Tensor) -> Tensor:
        """The norm of x (B, L, H, h) over each head's channels."""
        return layer_norm(x, self.scale.shape, self.scale, None, self.epsilon)


@dataclass
class Filled:
    """Global caches whose rows hold different numbers of positions: where the L new ones of each row stand.

    places: (B, L). most: the largest number of positions that a row held before.
    """

    places: Tensor
    most: int

    def append(self, cache: Tensor, new: Tensor) -> Tensor:
        """The cache (B, most + L, H, h) with the new positions (B, L, H, h) in it."""
        cache = pad(cache, (0, 0, 0, 0, 0, self.most + new.shape[1] - cache.shape[1]))
        return cache.scatter(1, self.places[:, :, None, None].expand_as(new), new.to(cache.dtype))

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention (B, L, d) of the new positions to those up to their own."""
        q, k, v = (t.to(q.dtype).transpose(1, 2) for t in (q, k, v))
        parts = []
        for first in range(0, q.shape[2], QUERY_BLOCK):
            queries = slice(first, first + QUERY_BLOCK)
            seen = slice(self.most + min(queries.stop, q.shape[2]))
            mask = torch.arange(seen.stop, device=q.device) <= self.places[:, None, queries, None]
            parts.append(
                scaled_dot_product_attention(q[:, :, queries], k[:, :, seen], v[:, :, seen], attn_mask=mask)
            )
        return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Causal attention with normalised, rotated queries and keys: (B, L, d) -> (B, L, d)."""

    def __init__(self, width: int, heads: int, window: int | None, epsilon: float) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.layer_norm = LayerNorm(width, epsilon)
        self.QKV_linear = nn.Linear(width, 3 * width, bias=False)
        self.linear = nn.Linear(width, width, bias=False)
        self.Q_layer_norm = LayerNorm(width // heads, epsilon)
        self.K_layer_norm = LayerNorm(width // heads, epsilon)

    def forward(
        self, normed: Tensor, cache: Cache | None, rotary: Tensor, filled: Filled | None
    ) -> tuple[Tensor, Cache | None]:
        q, k, v = self.QKV_linear(normed).unflatten(-1, (3 * self.heads, -1)).chunk(3, dim=2)
        q = apply_rotary(self.Q_layer_norm.of_heads(q), rotary).to(v.dtype)
        k = apply_rotary(self.K_layer_norm.of_heads(k), rotary).to(v.dtype)
        if filled is None or cache is None:
            out, cache = attention_with_cache(q, k, v, cache, self.window)
        elif filled.most == 0:
            out, cache = causal_attention(q, k, v), (k, v)
        else:
            cache = filled.append(cache[0], k), filled.append(cache[1], v)
            out = filled.attention(q, *cache)
        return self.linear(out), cache


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(width, epsilon)
        self.linear_1 = nn.Linear(width, inner, bias=False)
        self.linear_2 = nn.Linear(inner, width, bias=False)

    def forward(self, normed: Tensor) -> Tensor:
        return self.linear_2(self.linear_1(normed).relu_())


class Block(nn.Module):
    """Attention and feed-forward, each after a norm. The next norm adds the output to the residual stream."""

    def __init__(self, width: int, heads: int, inner: int | None, window: int | None, epsilon: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, window, epsilon)
        self.feedforward = FeedForward(width, inner or 4 * width, epsilon)

    def forward(
        self, residual: Tensor, update: Tensor | None, cache: Cache | None, rotary: Tensor,
        filled: Filled | None = None,
    ) -> tuple[Tensor, Tensor, Cache | None]:  # fmt: skip
        normed, residual = self.attention.layer_norm(residual, update)
        update, cache = self.attention(normed, cache, rotary, filled)
        normed, residual = self.feedforward.layer_norm(residual, update)
        return residual, self.feedforward(normed), cache


class Logits(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(width, epsilon)
        self.logits_linear = nn.Linear(width, VOCABULARY, bias=False)
