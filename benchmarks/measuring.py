"""Timing shared by the benchmarks: interleaved repeats, medians, spread, ratios within one run."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mambabyte.runtime.units import counted


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of the repeats, and the fastest and slowest."""

    median: float
    fastest: float
    slowest: float


def measure(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Time each call `repeats` times.

    The calls alternate, so that a change in the machine's speed affects all of them. Each turn runs the call
    twice and times the second, when caches and allocator are warm.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(repeats):
        print(f"\rround {round_number + 1}/{repeats}", end="", file=sys.stderr, flush=True)
        for name, call in calls.items():
            call()
            _synchronize()
            begin = time.perf_counter()
            call()
            _synchronize()
            seconds[name].append(time.perf_counter() - begin)
    print("\r" + " " * 30 + "\r", end="", file=sys.stderr, flush=True)
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(threads: int | None = None) -> str:
    """One line on the processor, the GPU and PyTorch's threads and version.

    Args:
        threads: those of the processes that are measured; None: of this one.
    """
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line.split(":")[1].split() for line in lines if line.startswith("flags"))
        name += ", " + (
            "AVX-512 bf16" if "avx512_bf16" in flags else "AVX-512" if "avx512f" in flags else "no AVX-512"
        )
    except (OSError, StopIteration):
        pass
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    used = counted(threads or torch.get_num_threads(), "thread")
    return f"{name}, {used}, torch {torch.__version__}{gpu}"


def parser(description: str, repeats: int) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--repeats", type=int, default=repeats, help="timed runs of each call")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def report(
    title: str, timings: dict[str, Timing], ratios: dict[str, float], as_json: bool, **setting: object
) -> None:
    """Print a table, or one JSON object, of the timings and their ratios."""
    if as_json:
        parts = {name: vars(timing) for name, timing in timings.items()}
        print(
            json.dumps({"title": title, "machine": machine(), **setting, "ratio": ratios, "seconds": parts})
        )
        return
    print(f"{title}\n{machine()}")
    print(", ".join(f"{key}={value}" for key, value in setting.items()))
    for name, timing in timings.items():
        spread = f"{1e3 * timing.fastest:.1f} to {1e3 * timing.slowest:.1f}"
        print(f"  {name:34}{1e3 * timing.median:10.1f} ms   ({spread})")
    for name, ratio in ratios.items():
        print(f"  {name:34}{ratio:10.2f} x")
