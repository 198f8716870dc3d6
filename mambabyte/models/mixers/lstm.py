"""One layer of PyTorch's LSTM (Hochreiter and Schmidhuber, 1997) and a projection."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mambabyte.models.lstm import lstm_flops, open_forget_gates, run_lstm
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer


@dataclass
class LSTMConfig(MixerConfig):
    """It has no hyperparameters but its width."""


class LSTM(SequenceMixer):
    """The state holds the output and the cell, both (B, width)."""

    def __init__(self, config: LSTMConfig, place: Place) -> None:
        super().__init__()
        self.lstm = nn.LSTM(place.width, place.width, batch_first=True)
        open_forget_gates(self.lstm)
        self.out_proj = nn.Linear(place.width, place.width, bias=False)

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        x = x.to(self.out_proj.weight.dtype)
        before = None
        if state is not None:
            output, cell = (part.to(x.dtype).unsqueeze(0) for part in state)
            before = (output, cell)
        out, after = run_lstm(self.lstm, x, before)
        return self.out_proj(out), None if state is None else tuple(part.squeeze(0) for part in after)

    def initial_state(self, batch_size: int) -> MixerState:
        zeros = self.out_proj.weight.new_zeros(batch_size, self.lstm.hidden_size)
        return zeros, zeros

    def flops(self, context_length: int) -> float:
        return lstm_flops(self.lstm.hidden_size) + 2 * self.lstm.hidden_size**2


LSTMConfig.mixer = LSTM
