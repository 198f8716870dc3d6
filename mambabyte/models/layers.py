"""Layers that models share: residual norms, rotary positions, attention with a cache, Transformer blocks.

    B batch   L bytes of this call   n bytes up to and including them   H heads   d model width   h = d / H

Attention never makes an L x L tensor: it uses PyTorch's scaled_dot_product_attention throughout, and where
that needs a mask, it processes one block of queries at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary

from mambabyte.models.byte_lm import State
from mambabyte.ops import residual_norm

QUERY_BLOCK = 256  # queries per mask
Cache = tuple[Tensor, ...]  # keys and values
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "relu": relu,
    "squared_relu": lambda x: relu(x).square(),
}


class ResidualNorm(nn.Module):
    """Add a block's output to the fp32 residual stream and normalise the sum x: returns (norm(x), x)."""

    def __init__(self, width: int, epsilon: float, rms: bool) -> None:
        super().__init__()
        self.rms, self.epsilon = rms, epsilon
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = None if rms else nn.Parameter(torch.zeros(width))

    def forward(self, residual: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        return residual_norm(residual, update, self.weight, self.bias, self.epsilon, self.rms)


def as_residual(x: Tensor) -> Tensor:
    """x as part of the residual stream, which is fp32 (fp64 in an fp64 model) even under autocast."""
    return x.to(_wide(x.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def run_layers(
    layers: Iterable[nn.Module], norm: Callable[..., tuple[Tensor, Any]], x: Tensor, states: State | None,
    *more: Any, update: Tensor | None = None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Run `x` + `update` through the layers and the norm; return the result and the layers' new states.

    A layer takes (residual, update, its state or None, *more) and returns (residual, update, state or None).
    The norm takes (residual, update), and its first output is the result.
    """
    residual, after = as_residual(x), []
    for index, layer in enumerate(layers):
        before = None if states is None else states[index]
        residual, update, state = layer(residual, update, before, *more)
        if state is not None:
            after.append(state)
    return norm(residual, update)[0], after


def rotary_factors(
    positions: Tensor, channels: int, base: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The factors of rotary positions (arXiv 2104.09864): unit complex numbers (..., L, 1, channels / 2) for
    positions (..., L), in fp32, or in fp64 where `dtype`, the model's, is that."""
    exponents = torch.arange(0, channels, 2, device=positions.device, dtype=_wide(dtype)) / channels
    angles = positions.unsqueeze(-1).to(_wide(dtype)) * base**-exponents
    return torch.polar(torch.ones_like(angles), angles).unsqueeze(-2)


def apply_rotary(x: Tensor, rotary: Tensor) -> Tensor:
    """x (B, L, H, h) with its first channels, as pairs, multiplied by `rotary_factors`."""
    channels = 2 * rotary.shape[-1]
    pairs = as_residual(x[..., :channels]).unflatten(-1, (-1, 2))
    rotated = torch.view_as_real(torch.view_as_complex(pairs) * rotary).flatten(-2).to(x.dtype)
    return rotated if channels == x.shape[-1] else torch.cat([rotated, x[..., channels:]], dim=-1)


@dataclass
class _Buffer:
    """Memory for a growing cache, of which the first `filled` places are in use."""

    memory: Tensor
    filled: int


# Kept apart from the caches, because a state must consist of plain tensors that can be saved and loaded.
_BUFFERS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def append_to_cache(cache: Tensor, new: Tensor) -> Tensor:
    """cache (B, n, ...) followed by new (B, L, ...), as torch.cat returns it.

    Without gradients, the result is a view of a larger buffer that the next call fills, so a byte costs only
    its own copy. Earlier caches keep their values: appending to one whose buffer has grown since copies it.
    """
    length, total = cache.shape[1], cache.shape[1] + new.shape[1]
    if length == 0:
        return new
    if torch.is_grad_enabled():
        return torch.cat([cache, new.to(cache.dtype)], dim=1)
    buffer = _BUFFERS.get(cache)
    if buffer is None or buffer.filled != length or total > buffer.memory.shape[1]:
        memory = cache.new_empty(cache.shape[0], total + max(64, total // 2), *cache.shape[2:])
        memory[:, :length] = cache
        buffer = _Buffer(memory, length)
    buffer.memory[:, length:total] = new
    buffer.filled = total
    extended = buffer.memory[:, :total]
    _BUFFERS[extended] = buffer
    return extended


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Causal attention (B, L, d) of queries (B, L, H, h) over keys and values (B, n, H, h), the last L of
    which belong to the queries. With `window`, each query sees the last `window` keys up to its own."""
    length, total = q.shape[1], k.shape[1]
    before = total - length
    q, k, v = (t.to(q.dtype).transpose(1, 2) for t in (q, k, v))
    window = None if window is not None and window >= total else window
    if window is None and (before == 0 or length == 1):
        out = scaled_dot_product_attention(q, k, v, is_causal=before == 0 and length > 1)
    else:
        rows = QUERY_BLOCK if window is None else max(window, 16)
        parts = []
        for first in range(before, total, rows):
            last = min(first + rows, total)
            lowest = 0 if window is None else max(0, first - window + 1)
            places = torch.arange(lowest, last, device=q.device)
            distance = places[first - lowest :, None] - places
            mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            keys, values = k[:, :, lowest:last], v[:, :, lowest:last]
            queries = q[:, :, first - before : last - before]
            parts.append(scaled_dot_product_attention(queries, keys, values, attn_mask=mask))
        out = torch.cat(parts, dim=2)
    return out.transpose(1, 2).flatten(2)


def attention_with_cache(
    q: Tensor, k: Tensor, v: Tensor, cache: Cache | None, window: int | None
) -> tuple[Tensor, Cache | None]:
    """`causal_attention` (B, L, d) of L new positions (B, L, H, h) after the cached ones, and the cache after
    them, which holds the last window - 1 positions if there is a window."""
    if cache is None:
        return causal_attention(q, k, v, window), None
    k, v = append_to_cache(cache[0], k), append_to_cache(cache[1], v)
    forgotten = 0 if window is None else max(0, k.shape[1] - window + 1)
    after = (k[:, forgotten:], v[:, forgotten:]) if forgotten else (k, v)
    return causal_attention(q, k, v, window), after


class Attention(nn.Module):
    """Causal self-attention: (B, L, d) -> (B, L, d)."""

    def __init__(self, width: int, heads: int, window: int | None = None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cache: Cache | None, rotary: Tensor | None) -> tuple[Tensor, Cache | None]:
        qkv = self.qkv(x).unflatten(-1, (3 * self.heads, -1))
        if rotary is None:
            q, k, v = qkv.chunk(3, dim=2)
        else:
            qk, v = qkv.split([2 * self.heads, self.heads], dim=2)
            q, k = apply_rotary(qk, rotary).chunk(2, dim=2)
        out, cache = attention_with_cache(q, k, v, cache, self.window)
        return self.out(out), cache


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Attention and feed-forward, each after a norm. The next norm adds the output to the residual stream."""

    def __init__(self, attention: Attention, feed_forward: FeedForward, epsilon: float, rms: bool) -> None:
        super().__init__()
        width = feed_forward.up.in_features
        self.attention_norm = ResidualNorm(width, epsilon, rms)
        self.attention = attention
        self.feed_forward_norm = ResidualNorm(width, epsilon, rms)
        self.feed_forward = feed_forward

    def forward(
        self, residual: Tensor, update: Tensor | None, cache: Cache | None, rotary: Tensor | None
    ) -> tuple[Tensor, Tensor, Cache | None]:
        normed, residual = self.attention_norm(residual, update)
        update, cache = self.attention(normed, cache, rotary)
        normed, residual = self.feed_forward_norm(residual, update)
        return residual, self.feed_forward(normed), cache


class Stack(nn.Module):
    """A causal transformer of `layers` blocks and a final norm, (B, L, d) -> (B, L, d)."""

    def __init__(
        self, width: int, layers: int, heads: int, inner: int | None, epsilon: float, rms: bool,
        activation: str, window: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.heads, self.inner = width, heads, inner or 4 * width
        self.layers = nn.ModuleList(
            Block(Attention(width, heads, window), FeedForward(width, self.inner, activation), epsilon, rms)
            for _ in range(layers)
        )
        self.norm = ResidualNorm(width, epsilon, rms)

    def forward(
        self, x: Tensor, caches: State | None = None, rotary: Tensor | None = None,
        update: Tensor | None = None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """The normalised output and the new caches, of which there are none without `caches`."""
        return run_layers(self.layers, self.norm, x, caches, rotary, update=update)

    def empty_caches(self, batch_size: int) -> State:
        empty = self.norm.weight.new_zeros(batch_size, 0, self.heads, self.width // self.heads)
        return [(empty, empty) for _ in self.layers]

    def flops(self, keys: float) -> float:
        """Per position that sees `keys` keys: 2 per weight, and 4 d per key (scores and weighted values)."""
        weights = 4 * self.width**2 + 2 * self.width * self.inner
        return len(self.layers) * (2 * weights + 4 * keys * self.width)


@torch.no_grad()
def initialise(model: nn.Module, std: float, depth: int, truncated: bool = False) -> None:
    """Draw every matrix from N(0, std), cut off at two standard deviations if `truncated`. Those that write
    to the residual stream of `depth` blocks are divided by sqrt(2 depth), as in GPT-2."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            if truncated:
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            else:
                nn.init.normal_(module.weight, std=std)
            if name.endswith((".out", ".down")):
                module.weight.div_(math.sqrt(2 * depth))
