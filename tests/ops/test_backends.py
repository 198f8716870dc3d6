"""Which backend an op uses where Triton runs, and where a fused one cannot do what a call asks."""

import pytest
import torch

from mambabyte.ops import backend_for, backends, causal_conv1d, residual_norm


@pytest.mark.parametrize("op", ["selective_scan", "causal_conv1d", "residual_norm"])
def test_cuda_tensors_use_triton_where_it_runs(monkeypatch, op):
    monkeypatch.setattr(backends, "_available", lambda name: (name in ("triton", "reference"), ""))
    cuda = torch.device("cuda")
    assert {backend_for(cuda, dtype, op) for dtype in (torch.float32, torch.bfloat16)} == {"triton"}
    assert backend_for(cuda, torch.float64, op) == "reference"


def test_what_no_triton_kernel_is_compiled_for_runs_on_the_reference(monkeypatch):
    monkeypatch.setattr(backends, "_serves", lambda *_: True)
    x, weight, bias = torch.randn(1, 7, 3), torch.randn(3, 5), torch.randn(3)
    out = causal_conv1d(x, weight, bias, backend="triton")
    assert torch.equal(out, causal_conv1d(x, weight, bias, backend="reference"))
    residual, weight = torch.randn(2, 8193), torch.randn(8193)
    for actual, expected in zip(
        residual_norm(residual, None, weight, None, 1e-5, True, "triton"),
        residual_norm(residual, None, weight, None, 1e-5, True, "reference"),
        strict=True,
    ):
        assert torch.equal(actual, expected)
