"""The selective state space model S6 (Mamba, arXiv 2312.00752, section 3.2): the scan and what it depends on.

From each input come its step size and its projections B and C, by linear layers; then follows the scan.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mambabyte.models.projection import Projection, minus_exp, used_again
from mambabyte.ops import selective_scan


class SelectiveStateSpace(nn.Module):
    """A base class, as mamba_ssm's parameter names have no level of their own for the scan: `add_scan` adds
    x_proj, dt_proj, A_log and D to the module itself."""

    def add_scan(self, channels: int, rank: int, states: int) -> None:
        """The scan's parameters, of which `initialise_scan` sets those that PyTorch does not."""
        self.rank, self.d_state = rank, states
        self.x_proj = Projection(channels, rank + 2 * states)
        self.dt_proj = Projection(rank, channels, bias=True, recompute=True)
        self.A_log = nn.Parameter(torch.empty(channels, states))
        self.D = nn.Parameter(torch.empty(channels))

    @torch.no_grad()
    def initialise_scan(self, dt_min: float, dt_max: float) -> None:
        """Mamba's initialisation (section 3.6); `x_proj` keeps PyTorch's.

        A is S4D-real, -1 .. -N in every channel. The step size's bias is softplus^-1 of log-uniform draws
        from [dt_min, dt_max].
        """
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        if self.A_log.is_meta:  # which has no values
            return
        self.A_log.copy_(torch.arange(1.0, self.d_state + 1).log().expand_as(self.A_log))
        self.D.fill_(1.0)
        bound = self.rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        self.dt_proj.bias.copy_(step_size_bias(self.dt_proj.bias, dt_min, dt_max))

    def scan(
        self, x: Tensor, z: Tensor | None, state: Tensor | None, document_start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The output (B, L, D) for x (B, L, D), gated by z if given, and the state (B, D, N) after it."""
        projected = self.x_proj(x)
        step_size, B, C = projected.split([self.rank, self.d_state, self.d_state], dim=-1)
        delta = self.dt_proj(step_size)  # its bias is added in fp32, inside the scan
        return selective_scan(
            used_again(x, projected), delta, minus_exp(self.A_log), B, C, self.D, z, self.dt_proj.bias,
            delta_softplus=True, initial_state=state, return_final_state=True, document_start=document_start,
        )  # type: ignore[return-value]  # fmt: skip


def step_size_bias(like: Tensor, dt_min: float, dt_max: float, floor: float = 0.0) -> Tensor:
    """softplus^-1 of draws from [dt_min, dt_max], uniform in their logarithms and raised to `floor` if they
    are below it, in the shape of `like`."""
    low, high = math.log(dt_min), math.log(dt_max)
    step_size = torch.exp(torch.rand_like(like) * (high - low) + low).clamp(min=floor)
    return step_size + torch.log(-torch.expm1(-step_size))


def scan_flops(channels: int, rank: int, states: int) -> float:
    """Of one position: the projections, and 7 per state (dt A, exp, dt u B, a h +, C h +)."""
    return 4 * channels * (rank + states) + 7 * channels * states
