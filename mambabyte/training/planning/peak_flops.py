"""A device's peak floating-point operations per second, of which utilization is a share."""

import functools
import time
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS

# Dense FLOP/s: bf16 on the tensor cores with fp32 accumulation, and fp32 outside them, as PyTorch multiplies
# by default. Cards are listed by the driver's exact name, so that MIG slices, laptop GPUs and unlisted cards
# are measured; Lightning's own lookup takes a MIG slice for the whole card, and an L40 or L40S for an L4.
# Cards that Lightning's table has right, under its names:
_LIGHTNING = {
    "NVIDIA H100 80GB HBM3": "h100 sxm",
    "NVIDIA H100 PCIe": "h100 pcie",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-PCIE-40GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA L4": "l4",
    "NVIDIA L40": "l40",
}
# (bf16, fp32) of cards that it lacks (A10, L40S) or has wrong (the H200's with sparsity, two H100 NVL as one,
# the bf16 of the others outside the tensor cores). From NVIDIA's data sheets (H200, H100 NVL, A10, L40S) and
# its white papers on the GA102 (A40, A6000, 3090) and Ada (4090) architectures.
_DATA_SHEETS = {
    "NVIDIA H200": (989.4e12, 66.9e12),
    "NVIDIA H200 NVL": (835.5e12, 60.0e12),
    "NVIDIA H100 NVL": (835.5e12, 60.0e12),
    "NVIDIA A10": (125e12, 31.2e12),
    "NVIDIA A40": (149.7e12, 37.4e12),
    "NVIDIA RTX A6000": (154.8e12, 38.7e12),
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
    """From the data sheet of a known GPU; otherwise measured by a large matrix product, once per process.

    Draws nothing from the global random generators.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if name in _LIGHTNING:
            return PeakFlops(_CUDA_FLOPS[_LIGHTNING[name]][dtype], "data sheet")
        if name in _DATA_SHEETS:
            return PeakFlops(_DATA_SHEETS[name][precision == "fp32"], "data sheet")
    return PeakFlops(measured_flops(device, dtype), "measured matrix product")


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest large matrix product's FLOP/s, tried for ``MEASURING_SECONDS``."""
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)  # constants would take less power and clock higher
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in "ab")

    def seconds() -> float:
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        return time.perf_counter() - start

    seconds()  # warm-up
    deadline, fastest = time.perf_counter() + MEASURING_SECONDS, seconds()
    while time.perf_counter() < deadline:
        fastest = min(fastest, seconds())
    return 2 * size**3 / fastest


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
