"""The layers that benchmarks/scaling.py compares: each mixes a sequence (1, L, D) and takes one byte more.

Attention and the LSTM are PyTorch's, the convolution is one by FFT with a kernel as long as the sequence, and
S4D and the selective scan are ours, in a plain block; the scan also as a loop of PyTorch's operators.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mambabyte.models.mixers import S4DConfig, S6Config
from mambabyte.models.mixers.mixer import Place

STATES, HEAD = 16, 64


class Layer(nn.Module):
    """`forward` is the sequence's; `state_after` what is kept of a sequence, and `step` one position more."""

    def state_after(self, length: int) -> Any:
        """The state after ``length`` positions, with any numbers in it and room for one more."""
        raise NotImplementedError

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The output (1, D) for one more position x (1, D), and the state after it."""
        raise NotImplementedError


class Attention(Layer):
    """Causal softmax attention in heads of 64 channels. Its state is every key and value."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def state_after(self, length: int) -> tuple[Tensor, Tensor]:
        width = self.out.in_features
        keys = torch.randn(1, self.heads, length + 1, width // self.heads)
        return keys, torch.randn_like(keys)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = self._split(x[:, None])
        state[0][:, :, -1:], state[1][:, :, -1:] = k, v
        y = functional.scaled_dot_product_attention(q, *state)
        return self.out(y.transpose(1, 2).flatten(1)), state

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )


class Convolution(Layer):
    """A causal convolution with a free kernel (D, L), by FFT. Its state is every input."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, length) / math.sqrt(length))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.gelu(by_fft(x.transpose(1, 2), self.kernel).transpose(1, 2)))

    def state_after(self, length: int) -> Tensor:
        return torch.randn(len(self.kernel), length)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state[:, -1] = x[0]
        y = (state * self.kernel[:, : state.shape[1]].flip(-1)).sum(-1)
        return self.out(functional.gelu(y[None])), state


class DiagonalSSM(Layer):
    """S4D as a plain block has it: time-invariant, so that training is a convolution by FFT and one byte more
    a step of the recurrence. Its state is (D, N/2) complex numbers."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.mixer = S4DConfig(d_state=STATES).build(Place(width, width, 0, 1))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.gelu(self.mixer(x, None)[0]))

    def state_after(self, length: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn_like(part) for part in self.mixer.initial_state(1))

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, state = self.mixer(x[:, None], state)
        return self.out(functional.gelu(y[:, 0])), state


class LSTM(Layer):
    """PyTorch's LSTM. Its state is two vectors (D)."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]

    def state_after(self, length: int) -> tuple[Tensor, Tensor]:
        width = self.lstm.hidden_size
        return torch.randn(1, 1, width), torch.randn(1, 1, width)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(x[:, None], state)
        return y[:, 0], state


class SelectiveScan(Layer):
    """S6 by our kernel. Its state is (D, N)."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.mixer = S6Config(d_state=STATES).build(Place(width, width, 0, 1))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.gelu(self.mixer(x, None)[0]))

    def state_after(self, length: int) -> Tensor:
        return torch.randn_like(self.mixer.A_log)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        delta, A, B, C = self._selected(x)
        state = torch.exp(delta[0, :, None] * A) * state + (delta * x)[0, :, None] * B
        return self.out(functional.gelu((state @ C[0] + self.mixer.D * x[0])[None])), state

    def _selected(self, x: Tensor) -> tuple[Tensor, ...]:
        """Step sizes (L, D), A (D, N), B and C (L, N) for inputs (L, D)."""
        mixer = self.mixer
        low, B, C = mixer.x_proj(x).split((mixer.rank, STATES, STATES), dim=-1)
        delta = functional.softplus(mixer.dt_proj(low) + mixer.dt_proj.bias)
        return delta, -mixer.A_log.exp(), B, C


class LoopedScan(SelectiveScan):
    """The same S6, position by position in PyTorch's operators, all of which autograd keeps."""

    def forward(self, x: Tensor) -> Tensor:
        delta, A, B, C = self._selected(x[0])
        state, outputs = x.new_zeros(A.shape), []
        for u, step, b, c in zip(x[0], delta, B, C, strict=True):
            state = torch.exp(step[:, None] * A) * state + (step * u)[:, None] * b
            outputs.append(state @ c)
        return self.out(functional.gelu((torch.stack(outputs) + self.mixer.D * x[0])[None]))


LAYERS: dict[str, type[Layer]] = {
    "attention": Attention,
    "LSTM": LSTM,
    "convolution": Convolution,
    "S4D": DiagonalSSM,
    "selective scan": SelectiveScan,
    "selective scan, looped": LoopedScan,
}


def by_fft(x: Tensor, kernel: Tensor) -> Tensor:
    """The causal convolution of x (1, D, L) with kernel (D, L)."""
    size = 2 * x.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(kernel, size), size)[..., : x.shape[-1]]
