"""What the parts claim, measured: the largest difference between two ways to compute the same thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mambabyte.lineage import block, hippo, s4, selection, ssm
from mambabyte.models import MambaByteConfig
from mambabyte.models.mamba import Mixer
from mambabyte.ops import selective_scan


class Identity(NamedTuple):
    """A row of the table. `difference()` must stay below `bound`."""

    system: str
    module: str
    claim: str
    difference: Callable[[], float]
    bound: float


def _largest(*differences: Tensor) -> float:
    return max(float(difference.detach().abs().max()) for difference in differences)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hold_and_block_exponential() -> float:
    """exp(Δ [[A, B], [0, 0]]) has Ā and B̄ in its first N rows."""
    A, B, _ = ssm.random_system(16)
    both = torch.cat([torch.cat([A, B[:, None]], dim=1), torch.zeros(1, 17).double()])
    exponential = torch.linalg.matrix_exp(0.1 * both)
    A_bar, B_bar = ssm.zero_order_hold(A, B, 0.1)
    return _largest(exponential[:16, :16] - A_bar, exponential[:16, 16] - B_bar)


def three_views() -> float:
    A, B, C = ssm.random_system(16)
    system, u = (*ssm.zero_order_hold(A, B, 0.1), C), _random(1000)
    y = ssm.recurrence(*system, u)
    convolved = ssm.convolution(ssm.kernel(*system, 1000), u)
    return _largest(y - convolved, y - ssm.scan(*ssm.diagonalise(*system), u))


def _smooth(length: int) -> Tensor:
    x = torch.arange(length, dtype=torch.float64) / length
    return torch.sin(9 * torch.pi * x) + torch.cos(4 * x)


def legs_online() -> float:
    u = _smooth(10_000)
    return _largest(hippo.remember_all(u, 64) - hippo.project(u, 64))


def legt_online() -> float:
    u = _smooth(10_000)
    return _largest(hippo.remember_window(u, 16, 2000) - hippo.project(u[-2000:], 16))


def legs_memory() -> float:
    A, B = hippo.legs(32)
    t = torch.linspace(0, 3, 20).double()
    memory = torch.stack([torch.linalg.matrix_exp(x * A) @ B for x in t])
    return _largest(memory - hippo.warped_basis(t, 32))


def s4_kernels() -> float:
    C = _random(64)
    powers = ssm.kernel(*ssm.bilinear(*hippo.legs(64), step=0.01), C, 1024)
    return _largest(s4.s4_kernel(C, 0.01, 1024) - powers)


def s4d_kernels() -> float:
    """Against the powers of a real system of twice the size, which has the conjugates too."""
    Lambda, C = s4.s4d_lin(32), torch.complex(_random(16), _random(16, seed=1))
    both, read = torch.cat([Lambda, Lambda.conj()]), torch.cat([C, C.conj()])
    system = ssm.zero_order_hold(torch.diag(both), torch.ones_like(both), 0.01)
    return _largest(s4.s4d_kernel(Lambda, C, 0.01, 512) - ssm.kernel(*system, read, 512))


def theorem_1() -> float:
    x = _random(500)
    return _largest(selection.theorem_1(x, 3 * x) - selection.gated_recurrence(x, torch.sigmoid(3 * x)))


def selective_forms() -> float:
    u, delta, A, B, C = (x.double() for x in selection.example(length=200, channels=1))
    y = selection.selective_recurrence(u, delta, A, B, C)
    M = selection.mixing_matrix(delta[0, :, 0], A[0], B[0], C[0])
    return _largest(
        y - selective_scan(u, delta, A, B, C),  # type: ignore[operator]
        y - selection.scan_in_memory(u, delta, A, B, C),
        y[0, :, 0] - M @ u[0, :, 0],
    )


def h3_is_linear_attention() -> float:
    q, k, v = (_random(2, 50, 8, seed=seed) for seed in range(3))
    y = block.h3(q, k, v, torch.ones(8, 1).double(), lambda x: x.cumsum(1))
    return _largest(y - torch.einsum("btd,ts,bsd,bsd->btd", q, torch.ones(50, 50).double().tril(), k, v))


def mamba_block() -> float:
    mixer, x = Mixer(MambaByteConfig(d_model=32)).double(), _random(2, 50, 32)
    return _largest(block.mamba(x, mixer.state_dict()) - mixer(x, None, None, False)[0])


IDENTITIES = (
    Identity(
        "zero-order hold", "ssm", "(Ā - I) A⁻¹ B is the block exponential", hold_and_block_exponential, 1e-10
    ),
    Identity("state space", "ssm", "recurrence = convolution = scan, 1,000 steps", three_views, 1e-10),
    Identity("HiPPO-LegS", "hippo", "online = projection, 10,000 values, N = 64", legs_online, 1e-4),
    Identity("HiPPO-LegT", "hippo", "online = projection, window 2,000, N = 16", legt_online, 1e-4),
    Identity("LegS's memory", "hippo", "exp(tA) B = Legendre polynomials of exp(-t)", legs_memory, 1e-10),
    Identity("S4", "s4", "Cauchy kernel = powers of Ā, N = 64, L = 1,024", s4_kernels, 1e-10),
    Identity("S4D", "s4", "sum of damped waves = powers of Ā", s4d_kernels, 1e-10),
    Identity("S6 as a gate", "selection", "Theorem 1: our op = gated recurrence", theorem_1, 1e-10),
    Identity("S6", "selection", "recurrence = our op = scan in memory = matrix", selective_forms, 1e-10),
    Identity("H3", "block", "without shift and decay: linear attention", h3_is_linear_attention, 1e-10),
    Identity("Mamba", "block", "these lines = `models.mamba`", mamba_block, 1e-10),
)
