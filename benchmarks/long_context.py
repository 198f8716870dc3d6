"""What the tournament's best models gain from a longer context, 128 to 32,768 bytes.

    python benchmarks/long_context.py --out docs/benchmarks    # after benchmarks/tournament.py
    python benchmarks/long_context.py --list                   # only print the commands

Each run at equal compute is measured on the same bytes in windows of each length (`mambabyte eval`, protocol
disjoint), side by side on one thread each; a run and a length that have been measured are not measured again.
Written are long_context.csv and long_context.png, and the page of the tournament anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from script import positive_int, run_script, seed_number
from tournament import write_page
from tournament_csv import RESULTS
from tournament_lengths import LENGTHS, write_lengths
from tournament_runs import RESULT, one_thread_of, result_of
from tournament_space import MODELS

from mambabyte.errors import UserError

CONTEXTS = tuple(2**power for power in range(7, 16))
_TOO_LONG = "positions for"  # said by an evaluation in windows that are too long for the model
_TOGETHER = 8192  # bytes that are read at a time, in one window or several


@dataclass(frozen=True)
class Measurement:
    """A run at equal compute (its result.json), measured in windows of a length."""

    folder: Path
    result: dict[str, Any]
    context_length: int
    max_bytes: int

    @property
    def command(self) -> list[str]:
        rows = max(1, _TOGETHER // self.context_length)
        return [
            *("mambabyte", "eval", "--bpb", "--json", "--ckpt", str(self.folder), "device=cpu"),
            *(f"context_length={self.context_length}", f"batch_size={rows}", f"max_bytes={self.max_bytes}"),
        ]

    @cached_property
    def row(self) -> dict[str, Any]:
        """Its row of the CSV; without a figure if the model has no positions for windows so long."""
        place = self.folder / f"context_{self.context_length}_{self.max_bytes}.json"
        if not place.exists():
            done = subprocess.run(
                [sys.executable, "-m", *self.command],
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            if done.returncode:
                said = (done.stderr.splitlines() or ["it says nothing"])[-1]
                fault = f"{self.folder}, {self.context_length}: {said}"
                if _TOO_LONG not in said:
                    raise SystemExit(fault)
                print(fault, file=sys.stderr)
                return self._row({"bits_per_byte": None, "bytes": None})
            written = place.with_suffix(".tmp")
            written.write_text(done.stdout)
            written.replace(place)
        try:
            return self._row(json.loads(place.read_text()))
        except (ValueError, TypeError, KeyError) as fault:
            raise UserError(f"{place} is no measurement: remove it, and it is made again") from fault

    def _row(self, found: dict[str, Any]) -> dict[str, Any]:
        row = {key: self.result[key] for key in ("corpus", "model", "seed")}
        row |= {"trained_at": self.result["context_length"], "context_length": self.context_length}
        row |= {"recurrent": int(self.result["stateful_bits_per_byte"] is not None)}
        row |= {key: found[key] for key in ("bytes", "bits_per_byte")}
        return row | {"machine": one_thread_of(), "command": shlex.join(self.command)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=Path, default=Path("runs/tournament"), help="of the tournament")
    arguments.add_argument("--corpus", default="books")
    arguments.add_argument(
        "--seeds", type=seed_number, nargs="+", default=[1], help="those of the tournament's runs"
    )
    arguments.add_argument("--contexts", type=positive_int, nargs="+", default=list(CONTEXTS))
    arguments.add_argument(
        "--max-bytes", type=positive_int, default=2**18, help="of the validation split, its first"
    )
    arguments.add_argument("--processes", type=positive_int, default=2)
    arguments.add_argument("--out", type=Path, help="folder for the CSV, the figure and the page")
    arguments.add_argument("--page-file", type=Path, help="the page; OUT/tournament.md if it is left out")
    arguments.add_argument("--list", action="store_true", help="only print the commands")
    options = arguments.parse_args()
    found = list(measurements(options))
    if not found:
        missing = f"there is no run at equal compute in {options.runs}"
        raise SystemExit(f"{missing}: run benchmarks/tournament.py first")
    if options.list:
        for each in found:
            print(shlex.join(each.command))
        return
    if options.out is None:
        arguments.error("--out says where the figures go")
    if not (options.out / RESULTS).exists():
        arguments.error(f"{options.out} has no {RESULTS}, which the page is written from too")
    with ThreadPoolExecutor(options.processes) as pool:
        rows = list(pool.map(lambda each: each.row, found))
    write_lengths(rows, options.out / LENGTHS)
    write_page(options.out, options.page_file)


def measurements(options: argparse.Namespace) -> Sequence[Measurement]:
    """Of every model's runs at equal compute that have ended."""
    found = []
    for model in MODELS:
        for seed in options.seeds:
            folder = options.runs / options.corpus / model / f"compute_{seed}"
            if (folder / RESULT).exists():
                result = result_of(folder / RESULT)
                if result["outcome"] == "finished":
                    found += [Measurement(folder, result, n, options.max_bytes) for n in options.contexts]
    return found


if __name__ == "__main__":
    run_script("long_context.py", main)
