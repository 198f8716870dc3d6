"""The precision in which a device trains and measures faster, decided once per machine."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mambabyte.ops.cpu.build import cache_folder
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.devices import synchronized_clock
from mambabyte.runtime.valid_json import valid_json

PrecisionName = Literal["fp32", "bf16"]
# Instructions that multiply in bf16, as PyTorch and Linux call them: x86's, and Arm's.
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
_WORTHWHILE = 1.1  # times as fast as fp32: casts between the two take time, too
_ROUNDS, _LEAST_ROUNDS, _MEASURING_SECONDS = 20, 3, 0.3
# What limits the instructions that oneDNN, which multiplies on x86, may use.
_ONEDNN_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@dataclass(frozen=True)
class Precision:
    """A precision, and in a few words why it was chosen."""

    name: PrecisionName
    reason: str


def fastest_precision(device: torch.device) -> Precision:
    """bf16 where the device has instructions for it and a product is clearly faster with them, else fp32."""
    if not multiplies_bf16(device):
        return Precision("fp32", f"{_named(device)} has no bf16 instructions")
    speedup = bf16_speedup(device)
    if speedup < _WORTHWHILE:
        return Precision("fp32", f"bf16 is no faster on {_named(device)}")
    return Precision("bf16", f"{speedup:.1f} times as fast as fp32 on {_named(device)}")


def slowness_of_bf16(device: torch.device) -> str | None:
    """A clause that says how much slower than fp32 bf16 is; None where it is not."""
    if fastest_precision(device).name == "bf16" or (speedup := bf16_speedup(device)) >= 1:
        return None
    times = f"{1 / speedup:.1f}" if speedup > 0.1 else f"{1 / speedup:.0f}"
    return f"bf16 products take {times} times as long as fp32 ones on {_named(device)}"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for it, by PyTorch's word or the processor's."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = _cpu_capabilities()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS)


@functools.cache
def bf16_speedup(device: torch.device) -> float:
    """How many times as fast as in fp32 a matrix product is in bf16.

    Measured once and kept beside the compiled kernels, under a key of the device and of PyTorch, so that the
    runs of a machine decide alike. Where it cannot be kept, every process measures. Global random generators
    keep their state.
    """
    key = hashlib.sha256(repr(_described(device)).encode()).hexdigest()[:16]
    path = cache_folder() / f"precision-{key}.json"
    speedup = _kept(path)
    if speedup is None:
        speedup = _measured_speedup(device)
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(valid_json({"torch": torch.__version__, "bf16_speedup": speedup}).encode())
    return speedup


def _kept(path: Path) -> float | None:
    """The speedup in a file; None if there is none, or no sensible one."""
    try:
        speedup = json.loads(path.read_text(encoding="utf-8"))["bf16_speedup"]
        return speedup if isinstance(speedup, float) and 0 < speedup < math.inf else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _measured_speedup(device: torch.device) -> float:
    """From the fastest of several products of each, taken in turns: a busy moment slows both."""
    product = _products(device)
    fastest = {"fp32": math.inf, "bf16": math.inf}
    with _one_thread():
        for each in fastest:
            product(each)  # warm-up
        begun = time.perf_counter()
        for done in range(_ROUNDS):
            if done >= _LEAST_ROUNDS and time.perf_counter() - begun > _MEASURING_SECONDS:
                break
            for each in fastest:
                fastest[each] = min(fastest[each], product(each))
    return fastest["fp32"] / fastest["bf16"]


def _products(device: torch.device) -> Callable[[str], float]:
    """A function that takes a product in a precision, of a size that keeps the device busy, and returns its
    seconds."""
    size = 2048 if device.type == "cuda" else 512
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator, device=device) for _ in "ab")
    factors = {"fp32": (a, b), "bf16": (a.bfloat16(), b.bfloat16())}

    def seconds(precision: str) -> float:
        start = synchronized_clock(device)
        torch.mm(*factors[precision])
        return synchronized_clock(device) - start

    return seconds


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several would wait for one that other work has delayed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _described(device: torch.device) -> list[Any]:
    """All that the speed depends on, the same in every process."""
    if device.type == "cuda":
        return [torch.__version__, torch.cuda.get_device_name(device)]
    limits = [os.environ.get(name) for name in _ONEDNN_VARIABLES]
    return [torch.__version__, sorted(_cpu_capabilities().items()), limits]


def _cpu_capabilities() -> Mapping[str, Any]:
    """The processor's instructions and other properties by name."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    with suppress(OSError):  # an earlier PyTorch: what Linux says
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return dict.fromkeys(
            (flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()), True
        )
    return {}


def _named(device: torch.device) -> str:
    return "this GPU" if device.type == "cuda" else "this processor"
