"""Mamba-3's block (arXiv 2603.15569), one input and one output for each head (SISO), as a mixer.

    z, x, B, C, dt, A, l, theta = W_i u          dt = softplus(dt + b)          A = -f(A)
    B, C = RMSNorm(B) + b_B, RMSNorm(C) + b_C    l = sigmoid(l)                 theta = pi tanh(theta)
    h_t = R_t (a_t h_{t-1} + b_t x_{t-1} B_{t-1}^T) + g_t x_t B_t^T             y_t = h_t C_t + D x_t
    a_t = exp(dt_t A_t)      b_t = (1 - l_t) dt_t a_t      g_t = l_t dt_t       out = W_o (y * silu(z))

This is the exponential-trapezoidal rule: l weighs the two ends of a step. R_t turns each pair of states that
has an angle by -dt_t theta_t, which makes it one complex state. Turning B and C by the sum of all angles
instead gives the same outputs, and the recurrence that is left is two of `mambabyte.ops.ssd`, one with the
inputs of a step and one with those of the step before. There is no convolution.

dt, A, l and D are one number for each head of P channels, and theta is shared by the heads. f is mamba_ssm's:
1 + A above 0, 1 / (1 - A) below. The parameters have its names, shapes and order of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu, softplus

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.layers import as_residual
from mambabyte.models.mixers.linear_recurrence import linear_recurrence
from mambabyte.models.mixers.mixer import MixerState, Place, SequenceMixer
from mambabyte.models.mixers.ssd_block import SSDBlockConfig
from mambabyte.models.selective_state_space import step_size_bias
from mambabyte.ops.ssd import ssd

_EPSILON = 1e-5  # of the norms, as in mamba_ssm
_LEAST_RATE = 1e-4  # of decay, as there


@dataclass
class Mamba3Config(SSDBlockConfig):
    name: ClassVar[str] = "Mamba-3"
    d_state: int = setting(default=64, at_least=2, at_most=10**5)
    rotated_share: float = setting(default=0.5, above=0, at_most=1)

    @property
    def angles(self) -> int:
        """Pairs of states that are turned."""
        return int(self.d_state * self.rotated_share) // 2

    def check(self, width: int) -> None:
        super().check(width)
        if not self.angles:
            raise UserError(
                f"model.mixer.rotated_share={self.rotated_share} of model.mixer.d_state={self.d_state} "
                "states is less than one pair"
            )


class _Norm(nn.Module):
    """RMSNorm over the states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, as_residual(self.weight), _EPSILON)


class Mamba3(SequenceMixer):
    """The state is the sum of angles (B, H, angles), modulo 2 pi; the recurrence's (B, H, P, N); and the last
    turned B (B, H, N) and x (B, H, P)."""

    resets = True

    def __init__(self, config: Mamba3Config, place: Place) -> None:
        super().__init__()
        self.inner, self.head_dim, self.groups = config.expand * place.width, config.head_dim, config.n_groups
        self.d_state, self.angles, self.chunk = config.d_state, config.angles, config.chunk
        self.heads = self.inner // config.head_dim
        shared = self.groups * self.d_state
        self.sizes = [self.inner, self.inner, shared, shared, self.heads, self.heads, self.heads, self.angles]
        self.in_proj = nn.Linear(place.width, sum(self.sizes), bias=False)
        self.dt_bias = nn.Parameter(
            step_size_bias(torch.empty(self.heads), config.dt_min, config.dt_max, config.dt_init_floor)
        )
        # The dimension of 1 is mamba_ssm's: with several inputs and outputs there is more of it.
        self.B_bias = nn.Parameter(torch.ones(self.heads, 1, self.d_state))
        self.C_bias = nn.Parameter(torch.ones(self.heads, 1, self.d_state))
        self.B_norm, self.C_norm = _Norm(self.d_state), _Norm(self.d_state)
        self.D = nn.Parameter(torch.ones(self.heads))
        self.out_proj = nn.Linear(self.inner, place.width, bias=False)
        for parameter in (self.dt_bias, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        z, u, *projected = self.in_proj(x).split(self.sizes, dim=-1)
        before = self.initial_state(len(x)) if state is None else state
        with torch.autocast(x.device.type, enabled=False):
            u, B, C, dt, A, mix, theta = map(as_residual, (u, *projected))
            first_angle, h, last_B, last_u = map(as_residual, before)
            u = u.unflatten(-1, (self.heads, self.head_dim))
            dt, mix = softplus(dt + self.dt_bias), mix.sigmoid()
            log_decay = -dt * _decay_rate(A)
            angles = summed_angles(
                dt.unsqueeze(-1) * (math.pi * theta.tanh()).unsqueeze(-2), first_angle, document_start
            )
            B = self._turned(self.B_norm(B.unflatten(-1, (self.groups, -1))), self.B_bias, angles)
            C = self._turned(self.C_norm(C.unflatten(-1, (self.groups, -1))), self.C_bias, angles)
            earlier_B = _earlier(B, last_B, document_start)
            earlier_u = _earlier(u, last_u, document_start)
            here, there = mix * dt, (1 - mix) * dt * log_decay.exp()
            recurrence = partial(
                ssd, return_final_state=True, document_start=document_start, chunk=self.chunk
            )
            y, h = recurrence(u * here.unsqueeze(-1), log_decay, B, C, h)
            more, added = recurrence(earlier_u * there.unsqueeze(-1), log_decay, earlier_B, C)
            y = (y + more + u * self.D.unsqueeze(-1)).flatten(2) * silu(as_residual(z))
        out = self.out_proj(y.to(z.dtype))
        return out, None if state is None else (angles[:, -1], h + added, B[:, -1], u[:, -1])

    def _turned(self, x: Tensor, bias: Tensor, angles: Tensor) -> Tensor:
        """x (B, L, G, N) for each head with its bias, the first pairs turned by angles (B, L, H, angles)."""
        x = x.repeat_interleave(self.heads // self.groups, dim=2) + as_residual(bias).squeeze(1)
        pairs = torch.view_as_complex(x[..., : 2 * self.angles].unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
        return torch.cat([turned, x[..., 2 * self.angles :]], dim=-1)

    def initial_state(self, batch_size: int) -> MixerState:
        shapes = ((self.angles,), (self.head_dim, self.d_state), (self.d_state,), (self.head_dim,))
        return tuple(self.D.new_zeros(batch_size, self.heads, *shape) for shape in shapes)

    def flops(self, context_length: int) -> float:
        """The projections and in the recurrence 8 per state, at any context length."""
        linear = (self.in_proj, self.out_proj)
        return 2 * sum(each.weight.numel() for each in linear) + 8 * self.inner * self.d_state


def _decay_rate(x: Tensor) -> Tensor:
    rate = x.clamp(min=0) + 1 / (1 - x.clamp(max=0))
    return rate.clamp(min=_LEAST_RATE)


def summed_angles(steps: Tensor, first: Tensor, document_start: Tensor | None) -> Tensor:
    """The sums of angles (B, L, H, angles), modulo 2 pi, from `first` on and anew in each document. They are
    made in fp64: in fp32 an angle's rounding would grow with the length."""
    ones = torch.ones(*steps.shape[:2], 1, 1, dtype=torch.float64, device=steps.device)
    if document_start is not None:
        ones = ones.masked_fill(document_start[..., None, None], 0.0)
    sums = linear_recurrence(ones, steps.double(), first.double())
    turns = torch.floor(sums.detach() / (2 * math.pi))
    return (sums - 2 * math.pi * turns).to(steps.dtype)


def _earlier(x: Tensor, last: Tensor, document_start: Tensor | None) -> Tensor:
    """x (B, L, H, ..) of the step before, which is `last` before the first and zero before a document."""
    earlier = torch.cat([last.to(x.dtype).unsqueeze(1), x[:, :-1]], dim=1)
    if document_start is None:
        return earlier
    return earlier.masked_fill(document_start[..., None, None], 0.0)


Mamba3Config.mixer = Mamba3
