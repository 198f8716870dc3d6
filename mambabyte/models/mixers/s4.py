"""S4 (arXiv 2111.00396): a state space model whose matrix is diagonal plus low rank, begun as HiPPO-LegS.

Per channel, with A = L - P P*, L diagonal, states in conjugate pairs, step size dt and the bilinear rule:

    h_t = A' h_{t-1} + B' u_t        A' = (1 - dt/2 A)^-1 (1 + dt/2 A)        B' = (1 - dt/2 A)^-1 dt B
    y_t = 2 Re(C h_t) + D u_t

Woodbury's identity inverts a diagonal plus low rank matrix, so that a step takes O(N). A' does not depend on
the input, so y is also the convolution of u with K_l = 2 Re(C A'^l B'), which training computes by FFT.

The paper finds K's FFT from L, P, B and C (1 - A'^length) by a Cauchy kernel. The last factor takes powers of
A', and with the powers A', A'^2, A'^4, .. the kernel itself is a product of rows C A'^(iS) and columns
A'^j B', l = i S + j; so it is what is computed here, exactly and for any length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mambabyte.models.layers import as_residual
from mambabyte.models.mixers.hippo import normal_and_low_rank
from mambabyte.models.mixers.long_convolution import long_convolution
from mambabyte.models.mixers.mixer import MixerState, Place, SequenceMixer
from mambabyte.models.mixers.s4d import TimeInvariantConfig, log_uniform


@dataclass
class S4Config(TimeInvariantConfig):
    """It has the hyperparameters that S4D has too, and no others."""


class S4(SequenceMixer):
    """u (B, L, d) -> y (B, L, d), in fp32. The state is (B, d, N/2, 2), real and imaginary parts."""

    def __init__(self, config: S4Config, place: Place) -> None:
        super().__init__()
        channels, pairs = place.width, config.d_state // 2
        self.log_step = nn.Parameter(log_uniform(channels, config.dt_min, config.dt_max))
        eigenvalues, low_rank, B = normal_and_low_rank(config.d_state)
        self.log_decay = nn.Parameter(_repeated(-eigenvalues.real, channels).log())
        self.frequency = nn.Parameter(_repeated(eigenvalues.imag, channels))
        self.P = nn.Parameter(_repeated(low_rank.view(float).reshape(pairs, 2), channels))
        self.B = nn.Parameter(_repeated(B.view(float).reshape(pairs, 2), channels))
        self.C = nn.Parameter(torch.randn(channels, pairs, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(channels))
        for parameter in self.parameters():
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self, u: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        with torch.autocast(u.device.type, enabled=False):
            u = as_residual(u)
            system = _System(*map(as_residual, (
                self.log_step, self.log_decay, self.frequency, self.P, self.B, self.C
            )))  # fmt: skip
            D = as_residual(self.D)
            if state is None:
                kernel = system.responses(system.input_vector().unsqueeze(0), u.shape[1])[0]
                return long_convolution(u, kernel) + u * D, None
            h = torch.view_as_complex(as_residual(state[0]))
            if u.shape[1] == 1:
                h = system.advance(h, u.transpose(1, 2))
                y = system.output(h).unsqueeze(1)
            else:
                first = as_vector(system.advance(h, torch.zeros_like(h.real[..., :1])))
                vectors = torch.cat([system.input_vector().unsqueeze(0), first])
                kernel, *decaying = system.responses(vectors, u.shape[1])
                y = long_convolution(u, kernel) + torch.stack(decaying).transpose(1, 2)
                h = system.final_state(u, h)
            return y + u * D, (torch.view_as_real(h),)

    def initial_state(self, batch_size: int) -> MixerState:
        return (self.C.new_zeros(batch_size, *self.C.shape),)

    def flops(self, context_length: int) -> float:
        """The recurrence, 36 per pair of states, at any context length."""
        return 36 * self.log_decay.numel()


class _System:
    """The discretised system. A state is (.., d, N/2) complex, or as a vector (.., d, N) of real parts and
    then imaginary ones, on which its matrices (d, N, N) act."""

    def __init__(
        self, log_step: Tensor, log_decay: Tensor, frequency: Tensor, P: Tensor, B: Tensor, C: Tensor
    ) -> None:
        self.half_step = log_step.exp().unsqueeze(-1) / 2
        self.L = torch.complex(-log_decay.exp(), frequency)
        self.P, self.B, self.C = map(torch.view_as_complex, (P, B, C))
        self.inverse = 1 / (1 - self.half_step * self.L)
        self.shared = 1 / self.half_step + self._projected(self.inverse * self.P)
        self._powers: list[Tensor] = []

    def _projected(self, h: Tensor) -> Tensor:
        """P* h over both of each pair, (.., d, 1)."""
        return 2 * (self.P.conj() * h).sum(-1, keepdim=True).real

    def advance(self, h: Tensor, u: Tensor) -> Tensor:
        """A' h + B' u for u (.., d, 1), by Woodbury's identity."""
        moved = h + self.half_step * (self.L * h - self.P * self._projected(h) + 2 * self.B * u)
        moved = self.inverse * moved
        return moved - self.inverse * self.P * (self._projected(moved) / self.shared)

    def output(self, h: Tensor) -> Tensor:
        """2 Re(C h), (.., d)."""
        return 2 * (self.C * h).sum(-1).real

    def input_vector(self) -> Tensor:
        """B' (d, N)."""
        return as_vector(self.advance(torch.zeros_like(self.B), torch.ones_like(self.half_step)))

    def powers(self, count: int) -> list[Tensor]:
        """A', A'^2, A'^4, .. (d, N, N)."""
        pairs = self.L.shape[-1]
        while len(self._powers) < count:
            if not self._powers:
                one = torch.eye(pairs, dtype=self.L.dtype, device=self.L.device)
                basis = torch.cat([one, 1j * one]).unsqueeze(1)  # (N, 1, N/2)
                columns = self.advance(basis, torch.zeros_like(self.half_step))
                self._powers.append(as_vector(columns).permute(1, 2, 0))
            else:
                self._powers.append(self._powers[-1] @ self._powers[-1])
        return self._powers[:count]

    def _split(self, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """The powers that make S and those that make up the rest of `length`."""
        doublings = (length - 1).bit_length()
        powers = self.powers(doublings)
        return powers[: (doublings + 1) // 2], powers[(doublings + 1) // 2 :]

    def responses(self, vectors: Tensor, length: int) -> Tensor:
        """2 Re(C A'^l h) for l < length and each of the states in vectors (B, d, N): (B, d, length)."""
        fine, coarse = self._split(length)
        columns = _columns(vectors.unsqueeze(-1), fine)
        rows = 2 * torch.cat([self.C.real, -self.C.imag], dim=-1).unsqueeze(1)  # (d, 1, N)
        for power in coarse:
            rows = torch.cat([rows, rows @ power], dim=1)
        return (rows @ columns).flatten(-2)[..., :length]

    def final_state(self, u: Tensor, h: Tensor) -> Tensor:
        """The state after u (B, L, d), from the state h (B, d, N/2) before it."""
        length = u.shape[1]
        fine, coarse = self._split(length)
        newest_first = pad(u.flip(1).transpose(1, 2), (0, (1 << len(fine + coarse)) - length))
        blocks = newest_first.unflatten(-1, (-1, 1 << len(fine))).mT  # (B, d, S, I)
        sums = _columns(self.input_vector().unsqueeze(-1), fine) @ blocks  # (B, d, N, I)
        for power in coarse:
            sums = sums[..., 0::2] + power @ sums[..., 1::2]
        vector = as_vector(h).unsqueeze(-1)
        for index, power in enumerate(self.powers(length.bit_length())):
            vector = power @ vector if length >> index & 1 else vector
        return torch.complex(*(sums + vector).squeeze(-1).chunk(2, dim=-1))


def _columns(first: Tensor, powers: list[Tensor]) -> Tensor:
    """A'^j x for j < 2^len(powers): (.., d, N, 1) -> (.., d, N, 2^len(powers))."""
    for power in powers:
        first = torch.cat([first, power @ first], dim=-1)
    return first


def as_vector(h: Tensor) -> Tensor:
    """(.., N/2) complex -> (.., N) real."""
    return torch.cat([h.real, h.imag], dim=-1)


def _repeated(values: object, channels: int) -> Tensor:
    one = torch.tensor(values, dtype=torch.get_default_dtype())
    return one.repeat(channels, *(1 for _ in one.shape))


S4Config.mixer = S4
