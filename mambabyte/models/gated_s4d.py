"""Gated S4D: a diagonal state space model (S4D, arXiv 2206.11893) in a gated block. A reconstruction.

MambaByte's paper names this baseline without giving equations, and no public code has exactly it. This is the
block of BiGS (arXiv 2212.10544, by the same first author) without its backward branch, close to GSS (arXiv
2206.13947):

    out = W_o( gelu(W_l S4D(gelu(W_u x))) * gelu(W_v x) )        added to the residual stream

Per channel, with n = 0 .. N/2 - 1 pairs of conjugate states, A_n initialised to -1/2 + i pi n, step size dt
and zero-order hold:

    h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A u_t            y_t = 2 Re(C h_t) + D u_t

The parameters do not depend on the input, so y is also the convolution of u with the kernel

    K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n)

Training computes it by FFT; generation uses the recurrence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layer_stack import LayerStack
from mambabyte.models.layers import ResidualNorm, as_residual


@dataclass
class GatedS4DConfig(ByteLMConfig):
    d_model: int = setting(default=192, at_least=1, at_most=10**6)
    n_layer: int = setting(default=4, at_least=1, at_most=10**4)
    d_state: int = setting(default=64, at_least=1, at_most=10**5)  # N, in conjugate pairs
    d_ff: int | None = setting(default=None, at_least=1, at_most=10**7)  # 3 * d_model when null
    dt_min: float = setting(default=1e-3, at_least=1e-10, at_most=10**3)
    dt_max: float = setting(default=1e-1, above=0, at_most=10**3)
    norm_epsilon: float = setting(default=1e-5, at_least=1e-12, at_most=1)
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.d_state % 2:
            raise UserError(f"model.d_state={self.d_state} must be even: its states are conjugate pairs")
        self.require_ascending("dt_min", "dt_max")

    @property
    def inner(self) -> int:
        return self.d_ff or 3 * self.d_model


class S4D(nn.Module):
    """u (B, L, d) -> y (B, L, d), in fp32. The state is (B, d, N/2, 2), real and imaginary parts."""

    def __init__(self, channels: int, states: int, dt_min: float, dt_max: float) -> None:
        super().__init__()
        pairs = states // 2
        log_step = torch.rand(channels) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        self.log_step = nn.Parameter(log_step)
        self.log_decay = nn.Parameter(torch.full((channels, pairs), math.log(0.5)))
        self.frequency = nn.Parameter((math.pi * torch.arange(float(pairs))).repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, pairs, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(channels))
        for parameter in self.parameters():
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(u.device.type, enabled=False):
            u = as_residual(u)
            log_step, log_decay, frequency, C, D = map(
                as_residual, (self.log_step, self.log_decay, self.frequency, self.C, self.D)
            )
            A = torch.complex(-log_decay.exp(), frequency)
            exponent = log_step.exp().unsqueeze(-1) * A
            B, C = torch.expm1(exponent) / A, torch.view_as_complex(C)
            if state is None:
                return self._convolve(u, exponent, B * C) + u * D, None
            h = torch.view_as_complex(as_residual(state))
            if u.shape[1] == 1:
                h = exponent.exp() * h + B * u.transpose(1, 2)
                y = 2 * (C * h).sum(-1).real.unsqueeze(1)
            else:
                y = self._convolve(u, exponent, B * C)
                y = y + decaying_sum(C * exponent.exp() * h, exponent, u.shape[1]).transpose(1, 2)
                h = (exponent * u.shape[1]).exp() * h + B * final_states(u, exponent)
            return y + u * D, torch.view_as_real(h)

    def _convolve(self, u: Tensor, exponent: Tensor, coefficients: Tensor) -> Tensor:
        length = u.shape[1]
        kernel = decaying_sum(coefficients, exponent, length)
        size = 2 * length  # padding, so that the circular convolution does not wrap around
        product = torch.fft.rfft(u.transpose(1, 2), size) * torch.fft.rfft(kernel, size)
        return torch.fft.irfft(product, size)[..., :length].transpose(1, 2)


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


class GatedBlock(nn.Module):
    def __init__(self, config: GatedS4DConfig) -> None:
        super().__init__()
        self.width = config.d_model
        self.norm = ResidualNorm(config.d_model, config.norm_epsilon, rms=True)
        self.in_proj = nn.Linear(config.d_model, config.d_model + config.inner, bias=False)  # W_u and W_v
        self.s4d = S4D(config.d_model, config.d_state, config.dt_min, config.dt_max)
        self.mix = nn.Linear(config.d_model, config.inner, bias=False)  # W_l
        self.out_proj = nn.Linear(config.inner, config.d_model, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(config.n_layer))

    def forward(
        self, residual: Tensor, update: Tensor | None, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        normed, residual = self.norm(residual, update)
        projected = gelu(self.in_proj(normed))
        u, gate = projected.split([self.width, projected.shape[-1] - self.width], dim=-1)
        y, after = self.s4d(u, None if state is None else state[0])
        return (
            residual,
            self.out_proj(gelu(self.mix(y.to(self.mix.weight.dtype))) * gate),
            None if after is None else (after,),
        )


class GatedS4D(LayerStack):
    """The state is (B, d, N/2, 2) per layer, at any length."""

    config: GatedS4DConfig
    recurrent = True

    def __init__(self, config: GatedS4DConfig) -> None:
        super().__init__(config, (GatedBlock(config) for _ in range(config.n_layer)))

    def initial_state(self, batch_size: int) -> State:
        shape = (batch_size, self.config.d_model, self.config.d_state // 2, 2)
        return [(self.embedding.weight.new_zeros(shape),) for _ in self.layers]

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """Matrix products and the recurrence, 12 per pair of states (6 + 2 + 4 for decay, input and output),
        at any context length. Training by FFT costs about as much: 20 log2(2 context_length) per channel."""
        d, inner, pairs = self.config.d_model, self.config.inner, self.config.d_state // 2
        layer = 2 * (d * (d + inner) + 2 * d * inner) + 12 * d * pairs
        return FlopsPerByte(float(self.config.n_layer * layer + 2 * d * VOCABULARY))


GatedS4DConfig.model = GatedS4D
