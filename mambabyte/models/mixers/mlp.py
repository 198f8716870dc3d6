"""What follows a mixer in a layer: each position on its own, or with the one before it in RWKV's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from mambabyte.models.mixers.mixer import MixerState, Place, SequenceMixer


def build_mlp(kind: str, inner: int, place: Place) -> SequenceMixer:
    """The MLP that `kind`, one of gelu, gated and rwkv, names."""
    if kind == "rwkv":
        from mambabyte.models.mixers.rwkv import ChannelMixing

        return ChannelMixing(inner, place)
    return MLP(place.d_model, inner, gated=kind == "gated")


class MLP(SequenceMixer):
    """W_2 gelu(W_1 x), or W_2 (silu(W_g x) * W_1 x) if `gated` (arXiv 2002.05202)."""

    resets = True

    def __init__(self, width: int, inner: int, gated: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * inner if gated else inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.gated = gated

    @property
    def output_projection(self) -> nn.Linear:
        return self.down

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        hidden = self.up(x)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = silu(gate) * hidden
        else:
            hidden = gelu(hidden)
        return self.down(hidden), state

    def initial_state(self, batch_size: int) -> MixerState:
        return ()

    def flops(self, context_length: int) -> float:
        return 2 * (self.up.weight.numel() + self.down.weight.numel())
