"""Any sequence mixer in one stack of blocks, on raw bytes: what Mamba's block and S6 are compared in.

A layer adds to the residual stream what its block makes of a mixer (`mixers/blocks.py`), then, unless `mlp`
is none, what an MLP makes of each position; each after an RMS norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layer_stack import LayerStack
from mambabyte.models.layers import ResidualNorm
from mambabyte.models.mixers.blocks import H3Block, MambaBlock, PlainBlock
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer
from mambabyte.models.mixers.mlp import build_mlp


@dataclass
class MixerStackConfig(ByteLMConfig):
    mixer: MixerConfig
    block: Literal["plain", "h3", "mamba"] = "plain"
    mlp: Literal["none", "gelu", "gated", "rwkv"] = "gated"
    d_model: int = setting(default=192, at_least=1, at_most=10**6)
    n_layer: int = setting(default=4, at_least=1, at_most=10**4)
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
        self.mixer.check(self.width)

    @property
    def width(self) -> int:
        """The mixer's channels."""
        return (self.expand or 2) * self.d_model if self.block == "mamba" else self.d_model

    @property
    def inner(self) -> int:
        """The MLP's channels."""
        return self.d_ff or (math.ceil(8 * self.d_model / 3) if self.mlp == "gated" else 4 * self.d_model)

    def mixers(self) -> list[MixerConfig]:
        """The mixer of each layer."""
        return [self.mixer] * self.n_layer


class MixerLayer(nn.Module):
    """A block around a mixer and perhaps an MLP, each after a norm. The next norm adds the last update."""

    def __init__(self, config: MixerStackConfig, mixer: MixerConfig, layer: int) -> None:
        super().__init__()
        d_model, place = config.d_model, Place(config.width, config.d_model, layer, config.n_layer)
        self.norm = ResidualNorm(d_model, config.norm_epsilon, rms=True)
        self.block = _block(config, mixer.build(place))
        self.parts = len(self.block.initial_state(0))
        self.mlp = None if config.mlp == "none" else build_mlp(config.mlp, config.inner, place)
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


def _block(config: MixerStackConfig, mixer: SequenceMixer) -> SequenceMixer:
    taps = config.d_conv or 4
    if config.block == "mamba":
        return MambaBlock(mixer, config.d_model, config.width, taps)
    if config.block == "h3":
        return H3Block(mixer, config.d_model, taps)
    return PlainBlock(mixer, config.d_model)


class MixerStack(LayerStack):
    """A layer's state is its block's and then its MLP's."""

    config: MixerStackConfig

    def __init__(self, config: MixerStackConfig) -> None:
        layers = [MixerLayer(config, mixer, layer) for layer, mixer in enumerate(config.mixers())]
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
        """As Mamba's table 1 has it: Mamba+S6, H3+S4, or the mixer alone."""
        name = type(self.config.mixer).__name__.removesuffix("Config")
        return {"plain": "", "h3": "H3+", "mamba": "Mamba+"}[self.config.block] + name

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
