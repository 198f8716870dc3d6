"""S4D, a diagonal state space model (arXiv 2206.11893), of each channel on its own.

Per channel, with pairs of conjugate states n = 0 .. N/2 - 1, step size dt and zero-order hold:

    h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A u_t            y_t = 2 Re(C h_t) + D u_t

The parameters do not depend on the input, so y is also the convolution of u with the kernel

    K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n)

Training computes it by FFT; generation uses the recurrence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.layers import as_residual
from mambabyte.models.mixers.hippo import normal_and_low_rank
from mambabyte.models.mixers.long_convolution import long_convolution
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer

Init = Literal["lin", "inv", "legs", "real"]


@dataclass
class TimeInvariantConfig(MixerConfig):
    """What S4 and S4D have in common."""

    d_state: int = setting(default=64, at_least=2, at_most=1024)  # N, in conjugate pairs
    dt_min: float = setting(default=1e-3, at_least=1e-10, at_most=10**3)
    dt_max: float = setting(default=1e-1, above=0, at_most=10**3)

    def __post_init__(self) -> None:
        if self.d_state % 2:
            raise UserError(f"model.mixer.d_state={self.d_state} must be even: states are conjugate pairs")
        self.require_ascending("dt_min", "dt_max")


@dataclass
class S4DConfig(TimeInvariantConfig):
    init: Init = "lin"

    def build(self, place: Place) -> S4D:
        return S4D(place.width, self.d_state, self.dt_min, self.dt_max, self.init)


class S4D(SequenceMixer):
    """u (B, L, d) -> y (B, L, d), in fp32. The state is (B, d, N/2, 2), real and imaginary parts.

    With `init` "real", A and C stay real, and so do their N/2 states.
    """

    def __init__(self, channels: int, states: int, dt_min: float, dt_max: float, init: Init = "lin") -> None:
        super().__init__()
        pairs = states // 2
        self.log_step = nn.Parameter(log_uniform(channels, dt_min, dt_max))
        decay, frequency = initial_rates(states, init)
        self.log_decay = nn.Parameter(decay.log().repeat(channels, 1))
        self.is_real = init == "real"
        if not self.is_real:
            self.frequency = nn.Parameter(frequency.repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, pairs, 1 if self.is_real else 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(channels))
        for parameter in self.parameters():
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self, u: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        with torch.autocast(u.device.type, enabled=False):
            u = as_residual(u)
            log_step, log_decay, C, D = map(as_residual, (self.log_step, self.log_decay, self.C, self.D))
            if self.is_real:
                frequency, C = torch.zeros_like(log_decay), pad(C, (0, 1))
            else:
                frequency = as_residual(self.frequency)
            A = torch.complex(-log_decay.exp(), frequency)
            exponent = log_step.exp().unsqueeze(-1) * A
            B, C = torch.expm1(exponent) / A, torch.view_as_complex(C)
            h = None if state is None else torch.view_as_complex(as_residual(state[0]))
            if h is not None and u.shape[1] == 1:
                h = exponent.exp() * h + B * u.transpose(1, 2)
                y = 2 * (C * h).sum(-1).real.unsqueeze(1)
            else:
                y = long_convolution(u, decaying_sum(B * C, exponent, u.shape[1]))
                if h is not None:
                    y = y + decaying_sum(C * exponent.exp() * h, exponent, u.shape[1]).transpose(1, 2)
                    h = (exponent * u.shape[1]).exp() * h + B * final_states(u, exponent)
            return y + u * D, None if h is None else (torch.view_as_real(h),)

    def initial_state(self, batch_size: int) -> MixerState:
        return (self.C.new_zeros(batch_size, *self.log_decay.shape, 2),)

    def flops(self, context_length: int) -> float:
        """The recurrence, 12 per pair of states (6 + 2 + 4 for decay, input and output), at any context
        length. Training by FFT costs about as much: 20 log2(2 context_length) per channel."""
        return 12 * self.log_decay.numel()


def log_uniform(channels: int, dt_min: float, dt_max: float) -> Tensor:
    """Logarithms of step sizes (channels), uniform between those of the two."""
    return torch.rand(channels) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)


def initial_rates(states: int, init: Init) -> tuple[Tensor, Tensor]:
    """Minus the real and the imaginary parts (N/2) of A's first eigenvalues (section 4)."""
    n = torch.arange(float(states // 2))
    half = torch.full_like(n, 0.5)
    if init == "legs":
        eigenvalues = normal_and_low_rank(states)[0]
        return half, torch.tensor(eigenvalues.imag, dtype=n.dtype)
    if init == "inv":
        return half, states / math.pi * (states / (2 * n + 1) - 1)
    return (n + 1, 0 * n) if init == "real" else (half, math.pi * n)


def _powers(exponent: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """exp(l exponent) for all l < length as coarse (d, n, I) times fine (d, n, S) powers, l = i S + j."""
    fine = 2 ** math.ceil(math.log2(length) / 2)
    coarse = -(-length // fine)
    steps = torch.arange(max(fine, coarse), device=exponent.device)
    exponent = exponent.unsqueeze(-1)
    return (exponent * fine * steps[:coarse]).exp(), (exponent * steps[:fine]).exp()


def decaying_sum(coefficients: Tensor, exponent: Tensor, length: int) -> Tensor:
    """2 Re sum_n c_n exp(l exponent_n) for l < length: (..., d, n) and (d, n) -> (..., d, length).

    This is a product of two small matrices per channel; the (d, n, length) powers are never written.
    """
    coarse, fine = _powers(exponent, length)
    left = coefficients.unsqueeze(-1) * coarse
    left = torch.cat([left.real, -left.imag], dim=-2).transpose(-1, -2)
    return 2 * (left @ torch.cat([fine.real, fine.imag], dim=-2)).flatten(-2)[..., :length]


def final_states(u: Tensor, exponent: Tensor) -> Tensor:
    """sum_l exp((L - 1 - l) exponent) u_l: (B, L, d) and (d, n) -> (B, d, n) complex."""
    coarse, fine = _powers(exponent, u.shape[1])
    size = coarse.shape[-1] * fine.shape[-1]
    newest_first = pad(u.flip(1).transpose(1, 2), (0, size - u.shape[1]))
    rows = newest_first.unflatten(-1, (coarse.shape[-1], fine.shape[-1]))
    parts = rows @ torch.cat([fine.real, fine.imag], dim=-2).transpose(-1, -2)
    sums = torch.complex(*(part.contiguous() for part in parts.chunk(2, dim=-1)))  # (B, d, I, n)
    return (sums * coarse.transpose(-1, -2)).sum(-2)
