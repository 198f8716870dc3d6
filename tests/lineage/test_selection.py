"""Selection: its forms, its gate, and what its scans move."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import softplus

from mambabyte.lineage import selection, ssm
from mambabyte.models import MambaByteConfig
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.models.lora import add_adapters
from mambabyte.ops import selective_scan

FORMS = (selection.selective_recurrence, selection.scan_in_memory)


def example(length: int, channels: int) -> list[torch.Tensor]:
    return [x.double() for x in selection.example(length, channels, states=3)]


@pytest.mark.parametrize("length", [1, 2, 7, 31])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_output_and_gradients_are_those_of_the_op(form, length: int) -> None:
    inputs = example(length, channels=5)
    found, expected = [], []
    for function, results in ((form, found), (selective_scan, expected)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = function(*leaves)
        results += [y, *torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True)]
    for x, y in zip(found, expected, strict=True):
        assert torch.allclose(x, y, rtol=0, atol=1e-11)


def test_matrix_of_each_channel() -> None:
    u, delta, A, B, C = example(23, channels=2)
    y = selective_scan(u, delta, A, B, C)
    for d in range(2):
        M = selection.mixing_matrix(delta[0, :, d], A[d], B[0], C[0])
        assert torch.allclose(M @ u[0, :, d], y[0, :, d], rtol=0, atol=1e-12)


def test_without_selection_the_matrix_is_a_convolution() -> None:
    _, delta, A, B, C = example(9, channels=1)
    M = selection.mixing_matrix(
        delta[0, :1, 0].expand(9), A[0], B[0, :1].expand(9, -1), C[0, :1].expand(9, -1)
    )
    K = ssm.kernel(torch.diag(torch.exp(delta[0, 0, 0] * A[0])), delta[0, 0, 0] * B[0, 0], C[0, 0], 9)
    for t in range(9):
        assert torch.allclose(M[t, : t + 1], K[: t + 1].flip(0), rtol=0, atol=1e-12)


def test_the_theorem_needs_zero_order_hold() -> None:
    """With Euler's Δ the gate on the input would be softplus and not sigmoid."""
    x = torch.linspace(-2, 2, 9).double()
    g = torch.sigmoid(3 * x)
    assert torch.allclose(selection.theorem_1(x, 3 * x), selection.gated_recurrence(x, g), rtol=0, atol=1e-13)
    ones = torch.ones(1, 9, 1).double()
    euler = selective_scan(x[None, :, None], softplus(3 * x)[None, :, None], -ones[0, :1], ones, ones)
    assert (euler.flatten() - selection.gated_recurrence(x, g)).abs().max() > 0.5


@pytest.mark.parametrize("kind", ["plain", "adapters", "bfloat16"])
def test_step_sizes_are_those_that_the_scan_uses(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=16, n_layer=2).build()
    if kind == "adapters":
        pytest.importorskip("peft")
        add_adapters(model, LoraSettings(rank=1, alpha=1.0))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    if kind == "bfloat16":
        model = model.bfloat16()
    used = []

    def recording(u, delta, *more, **options):
        used.append(softplus(delta[0].float() + more[5].float()))  # A, B, C, D, z, delta_bias
        return selective_scan(u, delta, *more, **options)

    monkeypatch.setattr("mambabyte.models.selective_state_space.selective_scan", recording)
    found = selection.step_sizes(model, b"hamburger")
    assert found.shape == (2, 9, 32) and found.dtype == torch.float32
    assert torch.allclose(found, torch.stack(used), rtol=1e-6, atol=0)
    model(b"no hook is left")
    assert len(found) == 2
