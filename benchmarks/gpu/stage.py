"""What every stage of `make gpu-check` shares: its arguments, its results, times by CUDA events, and its
clock.

A stage is a program that runs alone, too: `python benchmarks/gpu/scan.py [--dry]`. It appends one JSON
object a line to its results file:

    {"stage", "case", "metric", "value", "unit"}    a figure
    {"stage", "case", "note"}                       why there is none: absent, failed, no time left
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mambabyte.ops import describe_backends

FOLDER = Path("gpu-check-results")


class Stage:
    """One stage's run.

    Attributes:
        dry: toy sizes on the CPU, with stand-ins for other people's packages, and no figures worth reading.
        device: where it measures.
    """

    def __init__(self, name: str) -> None:
        options = parser(f"stage {name} of make gpu-check").parse_args()
        self.name, self.dry = name, options.dry
        self.folder: Path = options.folder
        self.device = torch.device("cpu" if options.dry else "cuda")
        self._end = time.monotonic() + options.seconds
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def choose(self, real: Any, toy: Any) -> Any:
        return toy if self.dry else real

    def record(self, case: str, **figures: tuple[float, str]) -> None:
        """Append figures, each a value and its unit."""
        for metric, (value, unit) in figures.items():
            self._append({"case": case, "metric": metric, "value": value, "unit": unit})
            print(f"{self.name}: {case}: {metric} {value:,.4g} {unit}", flush=True)

    def note(self, case: str, note: str) -> None:
        self._append({"case": case, "note": note})
        print(f"{self.name}: {case}: {note}", flush=True)

    def _append(self, row: dict[str, Any]) -> None:
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps({"stage": self.name, **row}) + "\n")

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Run the block; note its failure, and go on after it."""
        try:
            yield
        except NoTime:
            self.note(name, "no time left")
        except torch.OutOfMemoryError:
            self.note(name, "out of memory")
        except Exception as fault:
            traceback.print_exc()
            self.note(name, f"failed: {first_line(fault)}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def backends(self, op: str) -> list[str]:
        """The op's backends on this device; the absent ones are noted."""
        if self.dry:
            return ["cpu", "reference"]
        found = {backend.name: backend for backend in describe_backends() if backend.op == op}
        names = []
        for name in ("cuda", "triton", "mamba_ssm", "reference"):
            if name in found and found[name].available:
                names.append(name)
            elif name in found:
                self.note(f"{op} {name}", f"absent: {found[name].reason}")
            elif name != "mamba_ssm":
                self.note(f"{op} {name}", "absent: there is no such backend")
        return names

    def milliseconds(self, call: Callable[[], object], repeats: int = 10, needs: float = 2.0) -> float:
        """The median of `repeats` calls after two others, by CUDA events where there are any.

        Raises:
            NoTime: less than `needs` seconds are left.
        """
        if self.seconds_left < needs:
            raise NoTime
        repeats = self.choose(repeats, 1)
        for _ in range(self.choose(2, 1)):
            call()
        if self.device.type == "cpu":
            started = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - started)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in events:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events)

    def peak_gib(self, call: Callable[[], object], total: bool = False) -> float:
        """GiB of device memory that the call adds at its peak; `total`: with what is there before it."""
        if self.device.type == "cpu":
            call()
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = 0 if total else torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**30


class NoTime(Exception):
    """The stage's time has run out."""


def first_line(fault: Exception) -> str:
    lines = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {lines[0][:300]}" if lines else type(fault).__name__


def parser(description: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--dry", action="store_true", help="toy sizes on the CPU")
    result.add_argument("--folder", type=Path, default=FOLDER, help="where results go")
    result.add_argument("--seconds", type=float, default=300.0, help="when to begin nothing more")
    return result


def main(stage: str, run: Callable[[Stage], None]) -> None:
    """Run a stage; exit code 1 if it broke outside of its cases."""
    here = Stage(stage)
    try:
        run(here)
    except Exception as fault:
        traceback.print_exc()
        here.note("the stage", f"failed: {first_line(fault)}")
        sys.exit(1)
