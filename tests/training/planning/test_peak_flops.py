"""The peak FLOPs of a device."""

import pytest
import torch

from mambabyte.training.planning import peak_flops as module
from mambabyte.training.planning.peak_flops import peak_flops


@pytest.fixture(autouse=True)
def quick_and_uncached(monkeypatch):
    monkeypatch.setattr(module, "MEASURING_SECONDS", 0.02)
    peak_flops.cache_clear()
    yield
    peak_flops.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_is_measured_without_touching_the_random_state(precision) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    peak = peak_flops(torch.device("cpu"), precision)
    assert torch.equal(torch.rand(3), expected)
    assert peak.flops > 1e7 and peak.source == "measured matrix product"
    assert peak_flops(torch.device("cpu"), precision) is peak, "measured once in a process"


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA L4", "bf16", 121e12),
    ],
)
def test_a_known_gpu_has_the_dense_figure_of_its_data_sheet(name, precision, expected, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), precision) == module.PeakFlops(expected, "data sheet")


def test_a_mig_slice_and_an_unknown_gpu_are_measured(monkeypatch) -> None:
    monkeypatch.setattr(module, "measured_flops", lambda device, dtype: 1e12)
    for name in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "Something 1"):
        peak_flops.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda"), "bf16").source == "measured matrix product"


def test_the_peak_of_bf16_is_at_least_that_of_the_fp32_it_is_mixed_with(monkeypatch) -> None:
    speeds = {torch.float32: 4e9, torch.bfloat16: 1e9}  # a CPU that emulates bf16
    monkeypatch.setattr(module, "measured_flops", lambda device, dtype: speeds[dtype])
    assert peak_flops(torch.device("cpu"), "bf16").flops == 4e9
    speeds[torch.bfloat16] = 9e9
    assert peak_flops(torch.device("cpu"), "fp32").flops == 4e9
    peak_flops.cache_clear()
    assert peak_flops(torch.device("cpu"), "bf16").flops == 9e9


def test_a_share_above_the_peak_is_not_shown() -> None:
    peak = module.PeakFlops(1e9, "measured matrix product")
    assert module.utilization(5e8, peak, devices=1) == 0.5
    assert module.utilization(5e8, peak, devices=2) == 0.25
    assert module.utilization(2e9, peak, devices=2) == 1.0
    assert module.utilization(2.1e9, peak, devices=2) is None
