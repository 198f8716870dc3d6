"""Which backend an op uses where Triton runs, and where a fused one cannot do what a call asks."""

import pytest
import torch

from mambabyte.ops import backend_for, backends, causal_conv1d, residual_norm


@pytest.mark.parametrize("op", ["selective_scan", "causal_conv1d", "residual_norm", "ssd"])
def test_cuda_tensors_use_triton_where_it_runs(monkeypatch, op):
    monkeypatch.setattr(backends, "_available", lambda name: (name in ("triton", "reference"), ""))
    cuda = torch.device("cuda")
    assert {backend_for(cuda, dtype, op) for dtype in (torch.float32, torch.bfloat16)} == {"triton"}
    assert backend_for(cuda, torch.float64, op) == "reference"


def test_what_no_kernel_is_compiled_for_is_refused_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(backends, "_serves", lambda *_: True)
    x, weight, bias = torch.randn(1, 7, 3), torch.randn(3, 5), torch.randn(3)
    with pytest.raises(ValueError, match="widths of 2, 3, 4, not 5"):
        causal_conv1d(x, weight, bias, backend="triton")
    residual, weight = torch.randn(2, 8193), torch.randn(8193)
    with pytest.raises(ValueError, match="at most 8,192 channels, not 8,193"):
        residual_norm(residual, None, weight, None, 1e-5, True, "triton")


def test_and_else_runs_on_the_reference(monkeypatch):
    for op in ("causal_conv1d", "residual_norm"):
        monkeypatch.setitem(backends.BACKENDS, op, ("triton", "reference"))
    monkeypatch.setattr(backends, "_serves", lambda *_: True)
    x, weight, bias = torch.randn(1, 7, 3), torch.randn(3, 5), torch.randn(3)
    out = causal_conv1d(x, weight, bias)
    assert torch.equal(out, causal_conv1d(x, weight, bias, backend="reference"))
    residual, weight = torch.randn(2, 8193), torch.randn(8193)
    for actual, expected in zip(
        residual_norm(residual, None, weight, None, 1e-5, True),
        residual_norm(residual, None, weight, None, 1e-5, True, "reference"),
        strict=True,
    ):
        assert torch.equal(actual, expected)
