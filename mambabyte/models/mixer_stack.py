"""Any sequence mixer in one stack of blocks, on raw bytes: what Mamba's block and S6 are compared in.

A layer adds to the residual stream what its block makes of a mixer (`mixers/blocks.py`), then, unless `mlp`
is none, what an MLP makes of each position; each after an RMS norm. With a `layout`, some layers may be
attention instead, and some may have no MLP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layer_stack import LayerStack
from mambabyte.models.layers import ResidualNorm
from mambabyte.models.layout import SHOWN, parse_layout
from mambabyte.models.mixers.attention import AttentionConfig
from mambabyte.models.mixers.blocks import H3Block, MambaBlock, PlainBlock
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer
from mambabyte.models.mixers.mlp import build_mlp

Block = Literal["plain", "h3", "mamba"]
MLPKind = Literal["none", "gelu", "gated", "rwkv"]


class LayerPlan(NamedTuple):
    """What a layer consists of."""

    mixer: MixerConfig
    block: Block
    mlp: MLPKind


@dataclass
class MixerStackConfig(ByteLMConfig):
    mixer: MixerConfig
    block: Block = "plain"
    mlp: MLPKind = "gated"
    d_model: int = setting(default=192, at_least=1, at_most=10**6)
    n_layer: int = setting(default=4, at_least=1, at_most=10**4)
    layout: str | None = None  # m: the mixer, t: attention, capital letters: with an MLP; repeated
    n_head: int | None = setting(default=None, at_least=1, at_most=10**5)  # of the layers t; 4 when null
    window: int | None = setting(default=None, at_least=1, at_most=2**62)  # of the layers t; null: all
    rope_base: float | None = setting(default=None, at_least=1, at_most=10**12)  # of the layers t; 10,000
    expand: int | None = setting(default=None, at_least=1, at_most=10**3)  # of block=mamba; 2 when null
    d_conv: int | None = setting(default=None, at_least=1, at_most=10**5)  # of mamba and h3; 4 when null
    d_ff: int | None = setting(default=None, at_least=1, at_most=10**7)  # 8 d / 3 or 4 d when null
    norm_epsilon: float = setting(default=1e-5, at_least=1e-12, at_most=1)
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name, read in (
            ("expand", self.block == "mamba"),
            ("d_conv", self.block != "plain"),
            ("d_ff", self.mlp != "none"),
        ):
            if getattr(self, name) is not None and not read:
                where = f"mlp={self.mlp}" if name == "d_ff" else f"block={self.block}"
                raise UserError(f"model.{where} has no {name}: set model.{name}=null")
        self._check_layout()
        self.mixer.check(self.width)

    def _check_layout(self) -> None:
        """Raise UserError if the layout contradicts the other settings."""
        letters, named = self._letters, f"model.layout={(self.layout or '')[:SHOWN]}"
        if self.layout is not None:
            if len(letters) > self.n_layer:
                raise UserError(f"{named} has {len(letters)} layers: model.n_layer={self.n_layer} is too few")
            if not {"m", "M"} & {*letters}:
                raise UserError(f"{named} has no layer m, which model.mixer is for: leave model.layout null")
            if self.mlp == "none" and {"M", "T"} & {*letters}:
                raise UserError(f"{named} has capital letters, layers with an MLP: choose model.mlp")
            if self.mlp != "none" and not {"M", "T"} & {*letters}:
                raise UserError(f"{named} has no capital letter, a layer with an MLP: set model.mlp=none")
        if {"t", "T"} & {*letters}:
            d_model, heads = self.d_model, self.attention.n_head
            if d_model % (2 * heads):
                raise UserError(f"model.d_model={d_model} must be a multiple of twice model.n_head={heads}")
            return
        for name in ("n_head", "window", "rope_base"):
            if getattr(self, name) is not None:
                raise UserError(f"model.{name} is of layers t of a model.layout: set model.{name}=null")

    @property
    def _letters(self) -> list[str]:
        return [] if self.layout is None else parse_layout(self.layout, "mMtT")

    @property
    def width(self) -> int:
        """The mixer's channels."""
        return (self.expand or 2) * self.d_model if self.block == "mamba" else self.d_model

    @property
    def inner(self) -> int:
        """The MLP's channels."""
        return self.d_ff or (math.ceil(8 * self.d_model / 3) if self.mlp == "gated" else 4 * self.d_model)

    @property
    def attention(self) -> AttentionConfig:
        """The mixer of the layers t."""
        base = 10_000.0 if self.rope_base is None else self.rope_base
        return AttentionConfig(self.n_head or 4, self.window, base)

    @property
    def period(self) -> int:
        """The layers after which they repeat."""
        return len(self._letters) or 1

    @property
    def width_unit(self) -> int:
        """What a width has to be a multiple of, for the mixer."""
        return self.mixer.width_unit

    def layers(self) -> list[LayerPlan]:
        """Each layer: the layout again and again, the last time perhaps a part of it."""
        if self.layout is None:
            return [LayerPlan(self.mixer, self.block, self.mlp)] * self.n_layer
        kinds: dict[str, tuple[MixerConfig, Block]]
        kinds = {"m": (self.mixer, self.block), "t": (self.attention, "plain")}
        letters = islice(cycle(self._letters), self.n_layer)
        return [LayerPlan(*kinds[each.lower()], self.mlp if each.isupper() else "none") for each in letters]


class MixerLayer(nn.Module):
    """A block around a mixer and perhaps an MLP, each after a norm. The next norm adds the last update."""

    def __init__(self, config: MixerStackConfig, plan: LayerPlan, layer: int) -> None:
        super().__init__()
        d_model = config.d_model
        place = Place(config.width if plan.block == "mamba" else d_model, d_model, layer, config.n_layer)
        self.norm = ResidualNorm(d_model, config.norm_epsilon, rms=True)
        self.block = _block(config, plan.block, plan.mixer.build(place))
        self.parts = len(self.block.initial_state(0))
        self.mlp = None if plan.mlp == "none" else build_mlp(plan.mlp, config.inner, place)
        self.mlp_norm = None if self.mlp is None else ResidualNorm(d_model, config.norm_epsilon, rms=True)

    def forward(
        self, residual: Tensor, update: Tensor | None, state: MixerState | None,
        document_start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, MixerState | None]:  # fmt: skip
        before, mlp_before = (None, None) if state is None else (state[: self.parts], state[self.parts :])
        normed, residual = self.norm(residual, update)
        update, after = self.block(normed, before, document_start)
        if self.mlp is None or self.mlp_norm is None:
            return residual, update, after
        normed, residual = self.mlp_norm(residual, update)
        update, mlp_after = self.mlp(normed, mlp_before, document_start)
        return residual, update, None if after is None else (*after, *(mlp_after or ()))

    def initial_state(self, batch_size: int) -> MixerState:
        own = self.block.initial_state(batch_size)
        return own if self.mlp is None else (*own, *self.mlp.initial_state(batch_size))

    def flops(self, context_length: int) -> float:
        return sum(part.flops(context_length) for part in (self.block, self.mlp) if part is not None)


def _block(config: MixerStackConfig, block: Block, mixer: SequenceMixer) -> SequenceMixer:
    taps = config.d_conv or 4
    if block == "mamba":
        return MambaBlock(mixer, config.d_model, config.width, taps)
    if block == "h3":
        return H3Block(mixer, config.d_model, taps)
    return PlainBlock(mixer, config.d_model)


class MixerStack(LayerStack):
    """A layer's state is its block's and then its MLP's."""

    config: MixerStackConfig

    def __init__(self, config: MixerStackConfig) -> None:
        layers = [MixerLayer(config, plan, layer) for layer, plan in enumerate(config.layers())]
        super().__init__(config, layers)
        parts = [part for layer in layers for part in (layer.block, layer.mlp) if part is not None]
        mixers = [module for module in self.modules() if isinstance(module, SequenceMixer)]
        self.recurrent = all(mixer.recurrent for mixer in mixers)
        self.resets = all(part.resets for part in parts)
        # Documents that nobody can reset a state for run one by one, and the marks say where they begin.
        self.reads_marks_on_host = not self.resets
        with torch.no_grad():
            for projection in filter(None, (part.output_projection for part in parts)):
                projection.weight.div_(math.sqrt(len(parts)))  # each adds to the residual stream

    @property
    def kind(self) -> str:
        """As Mamba's table 1 has it: Mamba+S6, H3+S4, or the mixer alone; some layers may be attention."""
        name = type(self.config.mixer).__name__.removesuffix("Config")
        mixed = " with attention" if "t" in (self.config.layout or "").lower() else ""
        return {"plain": "", "h3": "H3+", "mamba": "Mamba+"}[self.config.block] + name + mixed

    def hidden(
        self,
        bytes: Tensor | bytes,
        state: State | None = None,
        document_start: Tensor | np.ndarray | None = None,
    ) -> Tensor:
        if not self.resets or isinstance(document_start, np.ndarray):
            return super().hidden(bytes, state, document_start)
        return self._read(self.as_batch(bytes, state, document_start), state, document_start)[0]

    def initial_state(self, batch_size: int) -> State:
        return [layer.initial_state(batch_size) for layer in self.layers]  # type: ignore[operator]

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """What the blocks and MLPs say of themselves, and the head."""
        layers: float = sum(layer.flops(context_length) for layer in self.layers)  # type: ignore[operator]
        return self.flops(layers + 2 * self.config.d_model * VOCABULARY)


MixerStackConfig.model = MixerStack
