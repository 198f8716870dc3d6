"""Perceiver AR (arXiv 2202.07765): latents at the last M positions, one causal cross-attention over all
positions, and a stack of causal self-attention among the latents.

The paper's model has outputs only for the last M positions of a window, but a ByteLM needs them for all. So a
document is cut into blocks of M positions from its first byte on. A block's latents see everything before
them through the cross-attention, and each other in the stack. The last block of a window of a multiple of M
bytes is exactly the paper's model, and the blocks before it are the paper's model on the shorter windows that
end there. Every byte of a window is therefore trained, a step recomputes no latent, and an empty prompt needs
no special treatment.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mambabyte.config.settings import setting
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.documentwise import DocumentwiseByteLM
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layers import (
    Cache,
    FeedForward,
    ResidualNorm,
    Stack,
    append_to_cache,
    apply_rotary,
    as_residual,
    causal_attention,
    initialise,
    rotary_factors,
)


@dataclass
class PerceiverARConfig(ByteLMConfig):
    n_latents: int = setting(default=256, at_least=1, at_most=2**30)
    d_model: int = setting(default=192, at_least=1, at_most=10**6)
    n_layer: int = setting(default=4, at_least=1, at_most=10**4)  # the cross-attention's is the first of them
    n_head: int = setting(default=4, at_least=1, at_most=10**5)
    d_ff: int | None = setting(default=None, at_least=1, at_most=10**7)  # 4 * d_model when null
    rotary_fraction: float = setting(default=0.25, above=0, at_most=1)  # of a head's channels
    rope_base: float = setting(default=10_000.0, at_least=1, at_most=10**12)
    norm_epsilon: float = setting(default=1e-5, at_least=1e-12, at_most=1)

    def __post_init__(self) -> None:
        self.require_multiple("d_model", "n_head", 2)

    @property
    def rotary_channels(self) -> int:
        return max(2, int(self.d_model // self.n_head * self.rotary_fraction) // 2 * 2)


class CrossBlock(nn.Module):
    """Project inputs to latents, let these attend to all inputs, and apply the feed-forward."""

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__()
        d, self.heads = config.d_model, config.n_head
        self.latents = nn.Linear(d, d, bias=False)
        self.input_norm = ResidualNorm(d, config.norm_epsilon, rms=False)
        self.latent_norm = ResidualNorm(d, config.norm_epsilon, rms=False)
        self.query = nn.Linear(d, d, bias=False)
        self.key_value = nn.Linear(d, 2 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.feed_forward_norm = ResidualNorm(d, config.norm_epsilon, rms=False)
        self.feed_forward = FeedForward(d, config.d_ff or 4 * d, "squared_relu")

    def forward(self, x: Tensor, cache: Cache | None, rotary: Tensor) -> tuple[Tensor, Tensor, Cache]:
        """For inputs (B, L, d): the residual stream, what the next norm adds to it, all keys and values."""
        residual = as_residual(self.latents(x))
        normed, residual = self.latent_norm(residual, None)
        q = self.query(normed).unflatten(-1, (self.heads, -1))
        k, v = self.key_value(self.input_norm(as_residual(x), None)[0]).chunk(2, dim=-1)
        k, v = apply_rotary(k.unflatten(-1, (self.heads, -1)), rotary), v.unflatten(-1, (self.heads, -1))
        if cache is not None:
            k, v = append_to_cache(cache[0], k), append_to_cache(cache[1], v)
        update = self.out(causal_attention(apply_rotary(q, rotary), k, v))
        normed, residual = self.feed_forward_norm(residual, update)
        return residual, self.feed_forward(normed), (k, v)


class PerceiverAR(DocumentwiseByteLM):
    """The state holds keys and values of all bytes for the cross-attention, then those of the current block
    for each layer of the stack."""

    config: PerceiverARConfig

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(VOCABULARY, config.d_model)
        self.cross = CrossBlock(config)
        self.stack = Stack(
            config.d_model, config.n_layer - 1, config.n_head, config.d_ff, config.norm_epsilon,
            rms=False, activation="squared_relu",
        )  # fmt: skip
        self.lm_head = nn.Linear(config.d_model, VOCABULARY, bias=False)
        initialise(self, std=0.02, depth=config.n_layer)
        self.add_further_heads()

    def initial_state(self, batch_size: int) -> State:
        shape = (batch_size, 0, self.config.n_head, self.config.d_model // self.config.n_head)
        nothing = self.lm_head.weight.new_zeros(shape)
        return [(nothing, nothing), *self.stack.empty_caches(batch_size)]

    def _read(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        config, length = self.config, bytes.shape[1]
        before = 0 if state is None else state[0][0].shape[1]
        x, cache = self.embedding(bytes.long()), None if state is None else state[0]
        residual, update, cross_cache = self.cross(x, cache, self._rotary(before, length))
        if state is None:
            return self._run_blocks(residual, update), []
        caches, done, parts = state[1:], 0, []
        while done < length:
            place = (before + done) % config.n_latents
            if place == 0:
                caches = self.stack.empty_caches(len(bytes))
            here = slice(done, done + config.n_latents - place)
            # Rotary positions encode only distances, so the stack may count from its block's start.
            rotary = self._rotary(place, residual[:, here].shape[1])
            out, caches = self.stack(residual[:, here], caches, rotary, update[:, here])
            parts.append(out)
            done = here.stop
        return torch.cat(parts, dim=1), [cross_cache, *caches]

    def _run_blocks(self, residual: Tensor, update: Tensor) -> Tensor:
        """All blocks at once, the last one padded at the end."""
        batch, length, width = residual.shape
        latents = min(self.config.n_latents, length)
        blocks = -(-length // latents)
        residual, update = (
            pad(x, (0, 0, 0, blocks * latents - length)).view(batch * blocks, latents, width)
            for x in (residual, update)
        )
        out = self.stack(residual, None, self._rotary(0, latents), update)[0]
        return out.view(batch, blocks * latents, width)[:, :length]

    def _rotary(self, first: int, length: int) -> Tensor:
        places = torch.arange(first, first + length, device=self.device)
        dtype = self.embedding.weight.dtype
        return rotary_factors(places, self.config.rotary_channels, self.config.rope_base, dtype)

    def blocks(self) -> list[nn.Module]:
        return [self.cross, *self.stack.layers]

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """The cross-attention over the context and the stack over a block; each byte is a latent once."""
        config = self.config
        d, inner = config.d_model, config.d_ff or 4 * config.d_model
        cross = 2 * (5 * d * d + 2 * d * inner) + 4 * context_length * d
        stack = self.stack.flops(min(config.n_latents, context_length))
        return self.flops(cross + stack + 2 * d * VOCABULARY)


PerceiverARConfig.model = PerceiverAR
