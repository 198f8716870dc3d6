"""The most floating-point operations a second that a device could do: utilization is a share of it."""

import functools
import time
from dataclasses import dataclass
from typing import Literal

import torch

# Dense (without sparsity), in FLOP/s: bf16 on the tensor cores with fp32 accumulation, and fp32 outside them,
# as PyTorch multiplies by default. From NVIDIA's data sheets (H100, H200, A100, A10, L4, L40, L40S) and its
# white papers on the GA102 (A40, A6000, 3090) and Ada (4090) architectures. By the exact name that the driver
# gives: a part of a GPU (MIG), a laptop's and whatever else is not listed are measured.
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
_SECONDS = 0.3


@dataclass(frozen=True)
class PeakFlops:
    """flops: a second, of one device. source: where the figure is from."""

    flops: float
    source: Literal["data sheet", "measured matrix product"]


@functools.cache
def peak_flops(device: torch.device, precision: Literal["fp32", "bf16"]) -> PeakFlops:
    """That of the data sheet for a GPU that we know, else that of a large matrix product, measured for a
    third of a second, once in a process. Draws nothing from the global random generators."""
    if device.type == "cuda":
        listed = _DATA_SHEETS.get(torch.cuda.get_device_name(device))
        if listed is not None:
            return PeakFlops(listed[precision == "fp32"], "data sheet")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return PeakFlops(_measured(device, dtype), "measured matrix product")


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)  # constant numbers take less power: a higher clock
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in "ab")

    def seconds() -> float:
        _wait_for(device)
        begun = time.perf_counter()
        torch.mm(a, b)
        _wait_for(device)
        return time.perf_counter() - begun

    seconds()  # the library's own preparations
    until, fastest = time.perf_counter() + _SECONDS, seconds()
    while time.perf_counter() < until:
        fastest = min(fastest, seconds())
    return 2 * size**3 / fastest


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
