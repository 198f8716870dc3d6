"""The linear state space: discretisations, and three views at odd lengths."""

from __future__ import annotations

import math

import pytest
import torch

from mambabyte.lineage import ssm

LENGTHS = (1, 2, 3, 5, 7, 64, 97)


def response(rule, steps: int) -> torch.Tensor:
    """At time 1, to an input that is 1 from time 0 on."""
    A, B, C = ssm.random_system(5)
    return ssm.recurrence(*rule(A, B, 1 / steps), C, torch.ones(steps).double())[-1]


@pytest.mark.parametrize(("rule", "order"), [(ssm.euler, 1), (ssm.bilinear, 2)], ids=["euler", "bilinear"])
def test_halving_the_step_divides_the_error_as_the_rule_promises(rule, order: int) -> None:
    A, B, C = ssm.random_system(5)
    exact = C @ torch.linalg.solve(A, (torch.linalg.matrix_exp(A) - torch.eye(5).double()) @ B)
    coarse, fine = (float((response(rule, steps) - exact).abs()) for steps in (2000, 4000))
    assert coarse / fine == pytest.approx(2**order, rel=0.05)  # the next term of the series
    assert response(ssm.zero_order_hold, 3) == pytest.approx(float(exact), abs=1e-11)


def test_an_integrator_has_no_inverse() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        ssm.zero_order_hold(torch.zeros(2, 2).double(), torch.ones(2).double(), 0.1)


@pytest.mark.parametrize("step", [1e-3, 0.5, 10.0])
def test_the_moving_average(step: float) -> None:
    assert ssm.moving_average_gate(step) == pytest.approx((math.exp(-step), 1 - math.exp(-step)), abs=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_three_views(length: int) -> None:
    A, B, C = ssm.random_system(3, seed=length)
    system = (*ssm.bilinear(A, B, 0.2), C)
    u = torch.randn(length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = ssm.recurrence(*system, u)
    for other in (
        ssm.convolution(ssm.kernel(*system, length), u),
        ssm.scan(*ssm.diagonalise(*system), u),
    ):
        assert torch.allclose(other, y, rtol=0, atol=1e-12)


def test_the_scan_has_the_gradients_of_the_recurrence() -> None:
    a, b = torch.rand(2, 11, 3, generator=torch.Generator().manual_seed(0)).double()
    assert torch.autograd.gradcheck(ssm.associative_scan, (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("length", LENGTHS)
def test_rounds_counts_what_the_scan_composes(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compose, counts = ssm.compose, []
    monkeypatch.setattr(ssm, "compose", lambda x, y: counts.append(len(x[0])) or compose(x, y))
    ssm.associative_scan(torch.ones(length), torch.ones(length))
    for processors in (1, 4, 1000):
        assert ssm.rounds(length, processors) == sum(-(-count // processors) for count in counts)
    assert ssm.rounds(length, 4) <= 2 * length / 4 + 2 * math.log2(length) + 1
