"""A gated, dilated convolution and a projection, as in `models/cnn.py`: it sees finitely many steps back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mambabyte.config.settings import setting
from mambabyte.models.cnn import gated_taps
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer


@dataclass
class CNNConfig(MixerConfig):
    kernel_size: int = setting(default=4, at_least=1, at_most=10**3)  # W
    dilation: int = setting(default=4, at_least=1, at_most=64)  # from a layer to the next, times this
    dilation_cycle: int = setting(default=4, at_least=1, at_most=10)  # layers

    def reach(self, layer: int) -> int:
        """How many steps back a layer sees."""
        return (self.kernel_size - 1) * self.dilation ** (layer % self.dilation_cycle)


class CNN(SequenceMixer):
    """The state holds the last (W - 1) s inputs, with s the layer's dilation, zero before the document."""

    def __init__(self, config: CNNConfig, place: Place) -> None:
        super().__init__()
        self.dilation = config.dilation ** (place.layer % config.dilation_cycle)
        self.reach = config.reach(place.layer)
        self.taps = nn.Linear(config.kernel_size * place.width, 2 * place.width, bias=False)
        self.out_proj = nn.Linear(place.width, place.width, bias=False)

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        gated, last = gated_taps(x, state, self.taps, self.reach, self.dilation)
        return self.out_proj(gated), last

    def initial_state(self, batch_size: int) -> MixerState:
        return (self.taps.weight.new_zeros(batch_size, self.reach, self.out_proj.in_features),)

    def flops(self, context_length: int) -> float:
        return 2 * (self.taps.weight.numel() + self.out_proj.weight.numel())


CNNConfig.mixer = CNN
