"""A device's peak floating-point operations per second, of which utilization is a share."""

import functools
import time
from dataclasses import dataclass
from typing import Literal

import torch

from mambabyte.runtime.devices import synchronized_clock

# Dense (bf16, fp32) FLOP/s: bf16 on the tensor cores with fp32 accumulation, fp32 outside them, PyTorch's
# default. From NVIDIA's data sheets and its white papers on the GA102 (A40, A6000, 3090) and Ada (4090)
# architectures. Keys are the driver's exact names: MIG slices, laptop GPUs and other cards are measured.
# Lightning's table lacks two of these cards, has six of them wrong, and takes a MIG slice for the whole card.
_DATA_SHEETS = {
    "NVIDIA H200": (989.4e12, 66.9e12),
    "NVIDIA H200 NVL": (835.5e12, 60.0e12),
    "NVIDIA H100 80GB HBM3": (989.4e12, 66.9e12),
    "NVIDIA H100 NVL": (835.5e12, 60.0e12),
    "NVIDIA H100 PCIe": (756.0e12, 51.2e12),
    "NVIDIA A100-SXM4-40GB": (312e12, 19.5e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 19.5e12),
    "NVIDIA A100-PCIE-40GB": (312e12, 19.5e12),
    "NVIDIA A100 80GB PCIe": (312e12, 19.5e12),
    "NVIDIA A10": (125e12, 31.2e12),
    "NVIDIA A40": (149.7e12, 37.4e12),
    "NVIDIA RTX A6000": (154.8e12, 38.7e12),
    "NVIDIA L4": (121e12, 30.3e12),
    "NVIDIA L40": (181e12, 90.5e12),
    "NVIDIA L40S": (362e12, 91.6e12),
    "NVIDIA GeForce RTX 3090": (71.0e12, 35.6e12),
    "NVIDIA GeForce RTX 4090": (165.2e12, 82.6e12),
}
MEASURING_SECONDS = 0.3


@dataclass(frozen=True)
class PeakFlops:
    """The peak FLOP/s of one device, and where the figure comes from."""

    flops: float
    source: Literal["data sheet", "measured matrix product"]


@functools.cache
def peak_flops(device: torch.device, precision: Literal["fp32", "bf16"]) -> PeakFlops:
    """From the data sheet of a known GPU; otherwise measured once per process. Global random generators keep
    their state.

    Of bf16, which is mixed with fp32, it is the faster one's: a CPU without bf16 arithmetic emulates it.
    """
    if device.type == "cuda" and (listed := _DATA_SHEETS.get(torch.cuda.get_device_name(device))):
        return PeakFlops(listed[precision == "fp32"], "data sheet")
    dtypes = [torch.float32, torch.bfloat16] if precision == "bf16" else [torch.float32]
    return PeakFlops(max(measured_flops(device, each) for each in dtypes), "measured matrix product")


def utilization(flops_per_second: float, peak: PeakFlops, devices: int) -> float | None:
    """The share of the devices' peak. None if it is above 1: the peak was measured too low, as on a machine
    that was busy meanwhile."""
    share = flops_per_second / (peak.flops * devices)
    return share if share <= 1 else None


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest large matrix product's FLOP/s, tried for ``MEASURING_SECONDS``."""
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)  # constants would take less power and clock higher
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in "ab")

    def seconds() -> float:
        start = synchronized_clock(device)
        torch.mm(a, b)
        return synchronized_clock(device) - start

    seconds()  # warm-up
    deadline, fastest = time.perf_counter() + MEASURING_SECONDS, seconds()
    while time.perf_counter() < deadline:
        fastest = min(fastest, seconds())
    return 2 * size**3 / fastest
