"""PyTorch's LSTM (Hochreiter and Schmidhuber, 1997) between a byte embedding and its transpose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambabyte.config.settings import setting
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.documentwise import DocumentwiseByteLM
from mambabyte.models.hyperparameters import ByteLMConfig


@dataclass
class LSTMConfig(ByteLMConfig):
    d_model: int = setting(default=272, at_least=1, at_most=10**6)
    n_layer: int = setting(default=3, at_least=1, at_most=10**4)
    tie_embeddings: bool = True


class LSTM(DocumentwiseByteLM):
    """The state holds each layer's output and cell, both (B, d)."""

    config: LSTMConfig
    recurrent = True

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(VOCABULARY, config.d_model)
        self.lstm = nn.LSTM(config.d_model, config.d_model, config.n_layer, batch_first=True)
        self.lm_head = nn.Linear(config.d_model, VOCABULARY, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        open_forget_gates(self.lstm)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        self.add_further_heads()

    def initial_state(self, batch_size: int) -> State:
        zeros = self.embedding.weight.new_zeros(batch_size, self.config.d_model)
        return [(zeros, zeros) for _ in range(self.config.n_layer)]

    def _read(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        before = None
        if state is not None:
            outputs, cells = zip(*state, strict=True)
            before = (torch.stack(outputs), torch.stack(cells))
        out, (last, cell) = run_lstm(self.lstm, self.embedding(bytes.long()), before)
        return out, list(zip(last.unbind(), cell.unbind(), strict=True))

    def blocks(self) -> list[nn.Module]:
        return [self.lstm]  # PyTorch runs its layers in one call

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        d = self.config.d_model
        return self.flops(self.config.n_layer * lstm_flops(d) + 2 * d * VOCABULARY)


def open_forget_gates(lstm: nn.LSTM) -> None:
    """Biases of 1 (Jozefowicz et al., 2015), so that gradients reach back."""
    forget = slice(lstm.hidden_size, 2 * lstm.hidden_size)
    for layer in range(lstm.num_layers):
        nn.init.ones_(getattr(lstm, f"bias_ih_l{layer}")[forget])
        nn.init.zeros_(getattr(lstm, f"bias_hh_l{layer}")[forget])


def run_lstm(
    lstm: nn.LSTM, x: Tensor, before: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The LSTM's output for x (B, L, d), in fp32 under a CPU's autocast, and its state."""
    device = x.device.type
    # A CPU without bf16 instructions has no bf16 LSTM.
    with torch.autocast(device, enabled=device != "cpu" and torch.is_autocast_enabled(device)):
        return lstm(x, before)


def lstm_flops(width: int) -> float:
    """Of one position and layer, at any context length: four gates of two products, 9 operations per cell."""
    return 2 * 8 * width * width + 9 * width


LSTMConfig.model = LSTM
