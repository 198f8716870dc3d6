"""The parts of H-Net (arXiv 2507.07955): its layers, the router, and what becomes chunks and bytes again.

    B batch   L positions of a stage, which are the bytes or the chunks of the stage around it   M chunks
    d width of the stage   H heads

The parameters have the names and shapes of the authors' code (github.com/goombalab/hnet).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, silu

from mambabyte.config.settings import Settings, setting
from mambabyte.models.byte_lm import State
from mambabyte.models.layers import (
    Cache,
    ResidualNorm,
    append_to_cache,
    as_residual,
    causal_attention,
    rotary_factors,
    run_layers,
)
from mambabyte.models.layout import parse_layout
from mambabyte.models.mixers.linear_recurrence import linear_recurrence
from mambabyte.models.mixers.mamba2 import Mamba2, Mamba2Config
from mambabyte.models.mixers.mixer import Place

if TYPE_CHECKING:
    from mambabyte.models.hnet import HNetConfig

LETTERS = "mMtT"  # Mamba-2 and attention; a capital is followed by an MLP
NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000.0
_LEAST_PROBABILITY = 1e-4  # of a boundary, where chunks are smoothed; the most is one less this
_MLP_MULTIPLE = 128


@dataclass
class SSMSettings(Settings):
    """Mamba-2's, in each stage or one for all of them."""

    section: ClassVar[str] = "model.ssm_cfg"
    d_state: int | tuple[int, ...] = setting(default=128, at_least=1, at_most=10**5)
    d_conv: int | tuple[int, ...] = setting(default=4, at_least=1, at_most=10**5)
    expand: int | tuple[int, ...] = setting(default=2, at_least=1, at_most=10**3)
    headdim: int | tuple[int, ...] = setting(default=64, at_least=1, at_most=10**6)
    chunk_size: int | tuple[int, ...] = setting(default=64, at_least=1, at_most=2**20)

    def of_stage(self, stage: int) -> Mamba2Config:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        own = {name: v[stage] if isinstance(v, tuple) else v for name, v in values.items()}
        names = {"headdim": "head_dim", "chunk_size": "chunk"}
        return Mamba2Config(**{names.get(name, name): value for name, value in own.items()})


@dataclass
class AttentionSettings(Settings):
    """The attention of each stage. A window of W is W + 1 keys, a position's own included, and -1 is all; of
    each head the first `rotary_emb_dim` channels are rotated."""

    section: ClassVar[str] = "model.attn_cfg"
    num_heads: tuple[int, ...] = setting(default=(4, 4), at_least=1, at_most=10**5)
    rotary_emb_dim: tuple[int, ...] = setting(default=(16, 24), at_least=0, at_most=10**6)
    window_size: tuple[int, ...] = setting(default=(255, -1), at_least=-1, at_most=2**62)

    def of_stage(self, stage: int) -> tuple[int, int | None, int]:
        """The heads, the keys that a position sees, and the rotated channels."""
        window = self.window_size[stage]
        return self.num_heads[stage], None if window < 0 else window + 1, self.rotary_emb_dim[stage]


class Attention(nn.Module):
    """Causal self-attention (B, L, d) -> (B, L, d). A cache holds keys and values (B, n, H, d / H).

    Args:
        window: the keys that a position sees, its own included; None: all.
        rotary_channels: of each head, how many are rotated: the first half of them with the second.
    """

    def __init__(self, width: int, heads: int, window: int | None, rotary_channels: int) -> None:
        super().__init__()
        self.heads, self.window, self.rotary_channels = heads, window, rotary_channels
        self.Wqkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cache: Cache | None, rotary: Tensor | None) -> tuple[Tensor, Cache | None]:
        qkv = self.Wqkv(x).unflatten(-1, (3 * self.heads, -1))
        qk, v = qkv.split([2 * self.heads, self.heads], dim=2)
        q, k = (qk if rotary is None else rotate_halves(qk, rotary)).chunk(2, dim=2)
        if cache is not None:
            k, v = append_to_cache(cache[0], k), append_to_cache(cache[1], v)
        out = self.out_proj(causal_attention(q, k, v, self.window))
        if cache is None:
            return out, None
        forgotten = 0 if self.window is None else max(0, k.shape[1] - self.window + 1)
        return out, ((k[:, forgotten:], v[:, forgotten:]) if forgotten else (k, v))

    def initial_state(self, batch_size: int) -> Cache:
        width = self.out_proj.in_features
        empty = self.out_proj.weight.new_zeros(batch_size, 0, self.heads, width // self.heads)
        return empty, empty

    def trimmed(self, cache: Cache, read: int) -> Cache:
        """The cache up to the last of the positions `read`."""
        filled = read if self.window is None else min(read, self.window - 1)
        return cache if cache[0].shape[1] == filled else tuple(each[:, :filled] for each in cache)

    def flops(self, context_length: float) -> float:
        """The projections, and 4 per channel and key, of which there is a whole context for each position."""
        width = self.out_proj.in_features
        keys = context_length if self.window is None else min(context_length, self.window)
        return 8 * width**2 + 4 * keys * width


def rotate_halves(x: Tensor, rotary: Tensor) -> Tensor:
    """x (B, L, H, h) whose first channels are multiplied by `rotary_factors` of n / 2 pairs: channel i of
    them and channel i + n / 2 are one complex number."""
    half = rotary.shape[-1]
    real, imaginary, rest = as_residual(x).split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = rotary.real, rotary.imag
    rotated = [real * cos - imaginary * sin, real * sin + imaginary * cos, rest]
    return torch.cat(rotated, dim=-1).to(x.dtype)


class SwiGLU(nn.Module):
    """W_2 (silu(gate) * up), with up and gate the halves of W_1 x (arXiv 2002.05202). The inner width is
    rounded up to a multiple of 128."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        inner = math.ceil(inner / _MLP_MULTIPLE) * _MLP_MULTIPLE
        self.fc1 = nn.Linear(width, 2 * inner, bias=False)
        self.fc2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(silu(gate) * up)

    def flops(self) -> float:
        return 2 * (self.fc1.weight.numel() + self.fc2.weight.numel())


class Block(nn.Module):
    """Mamba-2 or attention and perhaps an MLP, each after a norm. The next norm adds the last update."""

    def __init__(self, config: HNetConfig, stage: int, letter: str, layer: int, layers: int) -> None:
        super().__init__()
        width = config.d_model[stage]
        self.norm1 = ResidualNorm(width, NORM_EPSILON, rms=True)
        self.mixer: nn.Module
        if letter in "mM":
            self.mixer = Mamba2(config.ssm_cfg.of_stage(stage), Place(width, width, layer, layers))
        else:
            self.mixer = Attention(width, *config.attn_cfg.of_stage(stage))
        self.mlp = self.norm2 = None
        if letter.isupper():
            self.norm2 = ResidualNorm(width, NORM_EPSILON, rms=True)
            self.mlp = SwiGLU(width, config.d_intermediate[stage])

    def forward(
        self, residual: Tensor, update: Tensor | None, state: tuple[Tensor, ...] | None,
        rotary: Tensor | None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:  # fmt: skip
        normed, residual = self.norm1(residual, update)
        if isinstance(self.mixer, Attention):
            update, state = self.mixer(normed, state, rotary)
        else:
            update, state = self.mixer(normed, state)
        if self.mlp is not None and self.norm2 is not None:
            normed, residual = self.norm2(residual, update)
            update = self.mlp(normed)
        assert update is not None
        return residual, update, state

    def flops(self, context_length: float) -> float:
        mlp = 0.0 if self.mlp is None else self.mlp.flops()
        return self.mixer.flops(context_length) + mlp  # type: ignore[operator]


class Isotropic(nn.Module):
    """Blocks of one width and a final norm: (B, L, d) -> (B, L, d).

    Attributes:
        height: how many times something is added to the residual stream.
    """

    def __init__(self, config: HNetConfig, stage: int, layout: str) -> None:
        super().__init__()
        letters = parse_layout(layout, LETTERS)
        self.layers = nn.ModuleList(
            Block(config, stage, letter, layer, len(letters)) for layer, letter in enumerate(letters)
        )
        self.rmsnorm = ResidualNorm(config.d_model[stage], NORM_EPSILON, rms=True)
        self.height = sum(2 if letter.isupper() else 1 for letter in letters)
        attention = [block.mixer for block in self.layers if isinstance(block.mixer, Attention)]
        self.recurrent = not attention
        self._rotary_channels = attention[0].rotary_channels if attention else 0

    def forward(self, x: Tensor, states: State | None, read: Tensor | None) -> tuple[Tensor, State]:
        """The output and the layers' new states, of which there are none without `states`.

        Args:
            read: (B,) the positions before these, with `states`.
        """
        rotary = None
        if self._rotary_channels:
            positions = torch.arange(x.shape[1], device=x.device)
            positions = positions if read is None else positions + read.unsqueeze(1)
            rotary = rotary_factors(positions, self._rotary_channels, ROTARY_BASE, x.dtype)
        return run_layers(self.layers, self.rmsnorm, x, states, rotary)

    def initial_states(self, batch_size: int) -> State:
        return [block.mixer.initial_state(batch_size) for block in self.layers]  # type: ignore[union-attr,operator]

    def trimmed(self, states: State, read: int) -> State:
        """The states with caches that end with the last of the positions `read`."""
        mixers = [block.mixer for block in self.layers]
        return [
            mixer.trimmed(state, read) if isinstance(mixer, Attention) else state
            for mixer, state in zip(mixers, states, strict=True)
        ]

    @torch.no_grad()
    def initialise(self, std: float, residuals: int) -> None:
        """Draw the linear layers from N(0, std), those that write to the residual stream divided by the root
        of how often that is done in this stage and those around it."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes = name.endswith(("out_proj", "fc2"))
                nn.init.normal_(module.weight, std=std / math.sqrt(residuals) if writes else std)

    def flops(self, context_length: float) -> float:
        return sum(block.flops(context_length) for block in self.layers)  # type: ignore[operator]


class Boundaries(NamedTuple):
    """What a router said of each position (B, L): p, and whether it begins a chunk. Where a position of the
    bytes is none of the router's stage, p is 0."""

    p: Tensor
    begins: Tensor


class RoutingModule(nn.Module):
    """Where chunks begin (section 2.2): at a position that is unlike the one before it.

    p_t = (1 - cos(W_q x_{t-1}, W_k x_t)) / 2, and b_t = 1 where p_t >= 0.5. W_q and W_k begin as the
    identity. A document's first position always begins a chunk, with p = 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj_layer = nn.Linear(width, width, bias=False)
        self.k_proj_layer = nn.Linear(width, width, bias=False)
        for layer in (self.q_proj_layer, self.k_proj_layer):
            nn.init.eye_(layer.weight)

    def forward(self, x: Tensor, last: Tensor | None, read: Tensor | None) -> tuple[Tensor, Tensor]:
        """p in fp32 (fp64) and b, both (B, L).

        Args:
            x: (B, L, d). last: (B, d), the position before the first one; None at a beginning.
            read: (B,), the positions before; where it is 0, `last` means nothing.
        """
        before = x[:, :1] if last is None else last.unsqueeze(1).to(x.dtype)
        q = normalize(as_residual(self.q_proj_layer(torch.cat([before, x[:, :-1]], dim=1))), dim=-1)
        k = normalize(as_residual(self.k_proj_layer(x)), dim=-1)
        p = ((1 - (q * k).sum(-1)) / 2).clamp(0, 1)
        first = torch.ones_like(p[:, :1])
        if read is not None:
            first = torch.where(read.unsqueeze(1) == 0, first, p[:, :1])
        p = torch.cat([first, p[:, 1:]], dim=1)
        return p, p >= 0.5


def chunk_starts(number: Tensor, boundary: Tensor, most: int) -> Tensor:
    """The positions (B, M) that begin chunks, in order, M = `most` of each row; 0 after a row's last one.

    Args:
        number: (B, L), how many chunks begin up to and including each position. boundary: (B, L).
    """
    places = torch.arange(boundary.shape[1], device=boundary.device).expand_as(boundary)
    # what begins no chunk goes to one place more
    slots = torch.where(boundary, number - 1, most)
    return torch.zeros_like(number[:, :1]).expand(-1, most + 1).scatter(1, slots, places)[:, :most]


def smoothed(chunks: Tensor, p: Tensor, exists: Tensor, before: Tensor) -> Tensor:
    """z_m = p_m x_m + (1 - p_m) z_{m-1} for chunks x (B, M, d) and their p (B, M), in fp32 (fp64), with p
    within [1e-4, 1 - 1e-4]; where no chunk `exists` (B, M), z stays. `before`: z (B, d) before them."""
    chunks = as_residual(chunks)
    p = p.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY) * exists
    p = p.unsqueeze(-1).to(chunks.dtype)
    return linear_recurrence(1 - p, p * chunks, before.to(chunks.dtype))


def straight_through(p: Tensor, boundary: Tensor) -> Tensor:
    """Ones (B, L) with the gradient of the router's confidence in what it decided: p at a
    boundary, and 1 - p elsewhere."""
    confidence = torch.where(boundary, p, 1 - p)
    return confidence - confidence.detach() + 1


def at_places(x: Tensor, places: Tensor) -> Tensor:
    """x (B, L, d) at places (B, M) of each row."""
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def among_positions(deeper: list[Boundaries], number: Tensor, begins: Tensor) -> list[Boundaries]:
    """Boundaries among chunks as boundaries among the positions that the chunks are made of."""
    return [
        Boundaries((each.p.gather(1, number - 1) * begins), each.begins.gather(1, number - 1) & begins)
        for each in deeper
    ]


def ratio_losses(boundaries: Sequence[Boundaries], ratios: Sequence[float], read: Tensor) -> Tensor:
    """The ratio loss of each stage (S).

    Args:
        boundaries: of each stage, among the bytes (B, L).
        ratios: N of each stage.
        read: (B, L), the bytes that count.
    """
    positions, losses = read, []
    for each, n in zip(boundaries, ratios, strict=True):
        count = positions.sum().clamp(min=1)
        begins = each.begins & positions
        F, G = begins.sum().to(each.p.dtype) / count, (each.p * positions).sum() / count
        losses.append(n / (n - 1) * ((n - 1) * F * G + (1 - F) * (1 - G)))
        positions = begins
    return torch.stack(losses)


def joined_by_row(parts: Sequence[State], rows: Sequence[Sequence[int]]) -> State:
    """One state of states whose rows are these rows of a batch; caches are padded at the end."""
    order = torch.tensor([row for some in rows for row in some]).argsort()

    def joined(*tensors: Tensor) -> Tensor:
        if tensors[0].ndim > 1:
            longest = max(tensor.shape[1] for tensor in tensors)
            tensors = tuple(
                pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, longest - tensor.shape[1])) for tensor in tensors
            )
        return torch.cat(tensors)[order.to(tensors[0].device)]

    return [tuple(map(joined, *layer)) for layer in zip(*parts, strict=True)]
