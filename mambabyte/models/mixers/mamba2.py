"""Mamba-2's block (arXiv 2405.21060, section 7.1 and figure 6, right) as a mixer.

    z, x, B, C, dt = W_i u          x, B, C = silu(conv(x, B, C))        dt = softplus(dt + b)
    a_t = exp(dt_t A)      h_t = a_t h_{t-1} + dt_t x_t B_t^T      y_t = h_t C_t + D x_t
    out = W_o RMSNorm(y * silu(z))

A, b, dt and D are one number for each head of P channels. B and C are shared by the heads of a group, each
of which the norm takes by itself. The parameters have mamba_ssm's names, shapes and order of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu, softplus

from mambabyte.config.settings import setting
from mambabyte.models.layers import as_residual
from mambabyte.models.mixers.mixer import MixerState, Place, SequenceMixer
from mambabyte.models.mixers.ssd_block import SSDBlockConfig
from mambabyte.models.selective_state_space import step_size_bias
from mambabyte.ops import causal_conv1d, residual_norm
from mambabyte.ops.ssd import ssd

_EPSILON = 1e-5  # of the norm, as in mamba_ssm


@dataclass
class Mamba2Config(SSDBlockConfig):
    name: ClassVar[str] = "Mamba-2"
    d_conv: int = setting(default=4, at_least=1, at_most=10**5)


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * silu(z)) for y and z (B, L, D), each of `groups` equal parts of D by itself."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        gated = as_residual(y) * silu(as_residual(z))
        if self.groups == 1:
            return residual_norm(gated, None, self.weight, None, _EPSILON, rms=True)[0]
        parts = gated.unflatten(-1, (self.groups, -1))
        normed = rms_norm(parts, parts.shape[-1:], eps=_EPSILON).flatten(-2) * self.weight
        return normed.to(z.dtype)


class Mamba2(SequenceMixer):
    """The state is the last d_conv - 1 inputs of the convolution, (B, d_conv - 1, D + 2 G N) for D = expand
    * width channels, G groups and N states, and the recurrence's (B, H, P, N)."""

    resets = True

    def __init__(self, config: Mamba2Config, place: Place) -> None:
        super().__init__()
        self.inner, self.head_dim = config.expand * place.width, config.head_dim
        self.groups, self.d_state, self.chunk = config.n_groups, config.d_state, config.chunk
        self.heads = self.inner // config.head_dim
        self.channels = self.inner + 2 * self.groups * self.d_state  # of the convolution
        self.in_proj = nn.Linear(place.width, self.inner + self.channels + self.heads, bias=False)
        # Only holds the weights; the op is `causal_conv1d`.
        self.conv1d = nn.Conv1d(self.channels, self.channels, config.d_conv, groups=self.channels)
        self.dt_bias = nn.Parameter(
            step_size_bias(torch.empty(self.heads), config.dt_min, config.dt_max, config.dt_init_floor)
        )
        # uniform in [1, 16]
        self.A_log = nn.Parameter(torch.log(1 + 15 * torch.rand(self.heads)))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(self.inner, self.groups)
        self.out_proj = nn.Linear(self.inner, place.width, bias=False)
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        z, xBC, dt = self.in_proj(x).split([self.inner, self.channels, self.heads], dim=-1)
        inputs, h = (None, None) if state is None else state
        xBC, inputs = causal_conv1d(
            xBC, self.conv1d.weight.squeeze(1), self.conv1d.bias, inputs, return_final_state=True,
            document_start=document_start,
        )  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            # x, B and C stay in their precision, in which the kernels multiply matrices fastest.
            shared = self.groups * self.d_state
            u, B, C = xBC.split([self.inner, shared, shared], dim=-1)
            u = u.unflatten(-1, (self.heads, self.head_dim))
            B, C = (each.unflatten(-1, (self.groups, self.d_state)) for each in (B, C))
            dt = softplus(as_residual(dt) + self.dt_bias)
            y, h = ssd(
                (u * dt.unsqueeze(-1)).to(u.dtype), -dt * as_residual(self.A_log).exp(), B, C, h,
                return_final_state=True, document_start=document_start, chunk=self.chunk,
            )  # fmt: skip
            y = y + u * self.D.unsqueeze(-1)
        y = self.out_proj(self.norm(y.flatten(2), z))
        return y, None if state is None else (inputs, h)

    def initial_state(self, batch_size: int) -> MixerState:
        taps = self.conv1d.weight.shape[-1]
        inputs = self.D.new_zeros(batch_size, taps - 1, self.channels)
        return inputs, self.D.new_zeros(batch_size, self.heads, self.head_dim, self.d_state)

    def flops(self, context_length: int) -> float:
        """The projections, the convolution, and in the recurrence 6 per state, at any context length."""
        linear = (self.in_proj, self.conv1d, self.out_proj)
        return 2 * sum(each.weight.numel() for each in linear) + 6 * self.inner * self.d_state


Mamba2Config.mixer = Mamba2
