"""S4's kernel and the diagonal forms."""

from __future__ import annotations

import pytest
import torch

from mambabyte.lineage import hippo, s4, ssm
from mambabyte.models.mixers.s4d import decaying_sum


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 17, 64])
def test_legs_is_normal_plus_low_rank(size: int) -> None:
    Lambda, V, P = s4.normal_plus_low_rank(size)
    A = V @ torch.diag(Lambda) @ V.mH - torch.outer(P, P)
    assert torch.allclose(A, hippo.legs(size)[0].to(A.dtype), rtol=0, atol=1e-11)
    assert torch.allclose(V.mH @ V, torch.eye(size).to(V.dtype), rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 101])
@pytest.mark.parametrize("size", [1, 3, 32])
def test_the_kernel_by_cauchy_products_is_that_by_powers(size: int, length: int) -> None:
    """An even length has the root of unity −1, where the bilinear rule has a pole."""
    C = random(size)
    powers = ssm.kernel(*ssm.bilinear(*hippo.legs(size), step=0.05), C, length)
    assert torch.allclose(s4.s4_kernel(C, 0.05, length), powers, rtol=0, atol=1e-10)


def test_s4d_is_the_sum_that_the_gated_model_computes() -> None:
    Lambda, C = s4.s4d_lin(16), torch.complex(random(8), random(8).flip(0))
    coefficients = C * torch.expm1(0.1 * Lambda) / Lambda
    expected = decaying_sum(coefficients, 0.1 * Lambda, 33)
    assert torch.allclose(s4.s4d_kernel(Lambda, C, 0.1, 33), expected, rtol=0, atol=1e-12)


def test_where_eigenvalues_start() -> None:
    legs, inv = s4.s4d_legs(64), s4.s4d_inv(64)
    assert torch.equal(legs.real, torch.full((32,), -0.5).double()) and (legs.imag > 0).all()
    assert torch.allclose(legs.imag, inv.imag, rtol=0.3)  # a formula that follows them
    assert torch.allclose(legs.imag[0], inv.imag[0], rtol=0.02)
    assert torch.equal(s4.s4d_lin(6).imag, torch.pi * torch.arange(3).double())
    assert torch.equal(s4.s4d_real(3), torch.tensor([-1.0, -2.0, -3.0]).double())
