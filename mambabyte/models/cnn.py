"""A causal convolutional network: gated, dilated convolutions with residual connections, as in WaveNet
(arXiv 1609.03499, sections 2.1 to 2.4), without its separate sum of skips and with a norm before each layer.

Layer i sees the inputs 0, s, 2 s, .. (W - 1) s steps back, with s = 2^(i mod dilation_cycle). The receptive
field is finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambabyte.config.settings import setting
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layer_stack import LayerStack
from mambabyte.models.layers import ResidualNorm


@dataclass
class CNNConfig(ByteLMConfig):
    d_model: int = setting(default=192, at_least=1, at_most=10**6)
    n_layer: int = setting(default=9, at_least=1, at_most=10**4)
    kernel_size: int = setting(default=2, at_least=1, at_most=10**3)  # W
    dilation_cycle: int = setting(default=9, at_least=1, at_most=20)
    norm_epsilon: float = setting(default=1e-5, at_least=1e-12, at_most=1)
    tie_embeddings: bool = True

    def reach(self, layer: int) -> int:
        """How many steps back a layer sees."""
        return (self.kernel_size - 1) * 2 ** (layer % self.dilation_cycle)

    @property
    def receptive_field(self) -> int:
        return 1 + sum(self.reach(layer) for layer in range(self.n_layer))


class GatedConvolution(nn.Module):
    """x (B, L, d) -> W_o (tanh(conv x) * sigmoid(conv' x)); both convolutions are one product over taps."""

    def __init__(self, config: CNNConfig, layer: int) -> None:
        super().__init__()
        self.reach = config.reach(layer)
        self.dilation = 2 ** (layer % config.dilation_cycle)
        self.norm = ResidualNorm(config.d_model, config.norm_epsilon, rms=True)
        self.taps = nn.Linear(config.kernel_size * config.d_model, 2 * config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(config.n_layer))

    def forward(
        self, residual: Tensor, update: Tensor | None, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        normed, residual = self.norm(residual, update)
        gated, last = gated_taps(normed, state, self.taps, self.reach, self.dilation)
        return residual, self.out_proj(gated), last


def gated_taps(
    x: Tensor, state: tuple[Tensor, ...] | None, taps: nn.Linear, reach: int, dilation: int
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """tanh(conv x) * sigmoid(conv' x) for x (B, L, d), and, if there was a state, the last `reach` inputs."""
    batch, length, width = x.shape
    history = x.new_zeros(batch, reach, width) if state is None else state[0].to(x.dtype)
    x = torch.cat([history, x], dim=1)
    shifted = [x[:, back : back + length] for back in range(0, reach + 1, dilation)]
    filtered, gate = taps(torch.cat(shifted, dim=-1)).chunk(2, dim=-1)
    return filtered.tanh() * gate.sigmoid(), None if state is None else (x[:, length:],)


class CNN(LayerStack):
    """The state holds each layer's last inputs (B, (W - 1) s, d), zero before the document."""

    config: CNNConfig
    recurrent = True

    def __init__(self, config: CNNConfig) -> None:
        super().__init__(config, (GatedConvolution(config, layer) for layer in range(config.n_layer)))

    def initial_state(self, batch_size: int) -> State:
        zeros, config = self.embedding.weight.new_zeros, self.config
        return [(zeros(batch_size, config.reach(i), config.d_model),) for i in range(config.n_layer)]

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """Two convolutions of W taps and an output product per layer, at any context length."""
        d = self.config.d_model
        layer = 2 * (2 * self.config.kernel_size + 1) * d * d
        return self.flops(self.config.n_layer * layer + 2 * d * VOCABULARY)


CNNConfig.model = CNN
