"""HiPPO: what its coefficients are, and how well they reconstruct."""

from __future__ import annotations

import pytest
import torch

from mambabyte.lineage import hippo, ssm

X = torch.arange(2000, dtype=torch.float64) / 2000


def error(c: torch.Tensor, u: torch.Tensor) -> float:
    return float((hippo.reconstruct(c, len(u)) - u).square().mean().sqrt())


def test_coefficients_do_not_depend_on_how_many_are_kept() -> None:
    u = torch.sin(9 * X[:300])
    assert torch.allclose(hippo.remember_all(u, 12)[:5], hippo.remember_all(u, 5), rtol=0, atol=1e-13)


def test_legs_has_no_time_scale() -> None:
    """The same signal at half the speed; each value of the fast one is amid two of the slow one."""
    fast = hippo.remember_all(torch.sin(9 * (X[::2] + 0.5 / 2000)), 8)
    slow = hippo.remember_all(torch.sin(9 * X), 8)
    assert torch.allclose(fast, slow, rtol=0, atol=1e-5)  # (1/1000)², the error of the longer steps
    assert slow.norm() > 0.5


@pytest.mark.parametrize(
    ("u", "slope"), [((X > 0.4).double(), -0.5), ((X - 0.4).abs(), -1.5)], ids=["a-jump", "a-kink"]
)
def test_the_error_falls_as_theory_says(u: torch.Tensor, slope: float) -> None:
    c = hippo.remember_all(u, 32)
    sizes = torch.arange(4, 33)
    errors = torch.tensor([error(c[:size], u) for size in sizes]).log()
    logs = torch.stack([sizes.log(), torch.ones(len(sizes))], dim=1)
    fitted = torch.linalg.lstsq(logs, errors[:, None]).solution[0].item()
    assert fitted == pytest.approx(slope, abs=0.15)  # errors jump a little from N to N + 1
    assert error(c, u) < 1.02 * error(hippo.project(u, 32), u)


def test_a_polynomial_is_remembered_exactly() -> None:
    u = 1 - 3 * X + 5 * X**2
    assert error(hippo.project(u, 3), u) < 1e-5  # the definition's sum stands for an integral
    assert error(hippo.remember_all(u, 3), u) < 1e-3


def test_legt_forgets_what_left_its_window() -> None:
    u = torch.sin(9 * X)
    other = torch.where(X < 0.4, 1.0, u)
    c, c_other = (hippo.remember_window(x, 16, 500) for x in (u, other))
    assert error(c, u[-500:]) < 1e-3
    assert (c - c_other).abs().max() < 0.01  # what comes back through the guess at the old end


def test_legt_passes_a_constant_unchanged() -> None:
    """In rest the window holds the constant: A φ(1) = −B."""
    A, B = hippo.legt(7, window=3.0)
    c = torch.linalg.solve(A, -B)
    assert torch.allclose(c, torch.eye(7)[0].double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 9])
def test_memory_is_the_warped_basis(size: int) -> None:
    A, B = hippo.legs(size)
    t = torch.tensor([0.0, 0.3, 2.0]).double()
    memory = torch.stack([torch.linalg.matrix_exp(x * A) @ B for x in t])
    assert torch.allclose(memory, hippo.warped_basis(t, size), rtol=0, atol=1e-10)


def test_bilinear_steps_of_legs_are_stable() -> None:
    A, B = hippo.legs(64)
    for k in (1, 2, 100):
        A_bar, _ = ssm.bilinear(A, B, 1 / (k - 0.5))
        assert torch.linalg.eigvals(A_bar).abs().max() < 1
