"""Copying, selective copying and induction heads by every mixer: which solve which.

    python benchmarks/synthetic_tasks.py --out docs/benchmarks [--seeds 0 1] [--processes 2]
    python benchmarks/synthetic_tasks.py --list                         # only print the commands
    python benchmarks/synthetic_tasks.py --page --out docs/benchmarks   # figures and page, from the CSVs

Each run is a command of its own on one thread, as printed and as the CSV records it. The same call again goes
on with what is unfinished in `--runs`. Induction heads are then measured at 2^6 to 2^17 bytes. Written are
synthetic_tasks.csv, synthetic_tasks_lengths.csv, two figures, and synthetic_tasks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csv_rows import read_rows, write_rows
from synthetic_tasks_page import draw, page

RESULTS, LENGTHS = "synthetic_tasks.csv", "synthetic_tasks_lengths.csv"
RESULT_COLUMNS = (
    *("task", "mixer", "block", "mlp", "seed", "parameters", "steps", "training_seconds", "accuracy"),
    *("sequence_accuracy", "chance", "bits_per_answer", "machine", "command"),
)
LENGTH_COLUMNS = ("task", "mixer", "block", "mlp", "seed", "length", "sequences", "accuracy", "command")
# What stands around a mixer: Mamba's table 1 for S4 and S6, and for the others the block they are known in.
PAPER = [(mixer, block, "none") for mixer in ("s4", "s6") for block in ("plain", "h3", "mamba")]
OTHERS = [
    ("ssd", "mamba", "none"),
    ("linear_attention", "plain", "gated"),
    ("rwkv", "plain", "rwkv"),
    ("lstm", "plain", "none"),
    ("cnn", "plain", "gated"),
    ("attention", "plain", "gated"),
]
# Attention with Mamba's convolution finds induction heads at this size, a Transformer takes far longer.
HEADS = [(mixer, "mamba", "none") for mixer in ("s6", "s4", "ssd", "attention")] + OTHERS[1:4]
FURTHEST = 2**17  # bytes, for models whose state grows an eighth of it


@dataclass(frozen=True)
class Run:
    task: str
    mixer: str
    block: str
    mlp: str
    seed: int
    runs: Path

    @property
    def folder(self) -> Path:
        return self.runs / self.task / f"{self.mixer}_{self.block}_{self.mlp}_{self.seed}"

    @property
    def command(self) -> list[str]:
        chosen = [f"mixer={self.mixer}", f"model.block={self.block}", f"model.mlp={self.mlp}"]
        return [
            *("mambabyte", "train", f"experiment={self.task}_small", *chosen, f"seed={self.seed}"),
            *("trainer.threads=1", "trainer.accelerator=cpu", f"run_dir={self.folder}"),
        ]

    @property
    def measuring(self) -> list[str]:
        furthest = FURTHEST // 8 if self.mixer == "attention" else FURTHEST
        return [
            *("mambabyte", "eval", "--lengths", "--json", "--ckpt", str(self.folder), "device=cpu"),
            *(f"furthest={furthest}", f"out={self.folder / 'evaluation'}"),
        ]

    @property
    def columns(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("task", "mixer", "block", "mlp", "seed")}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments.add_argument("--processes", type=int, default=2, help="runs at a time, on a thread each")
    arguments.add_argument("--runs", type=Path, default=Path("runs/synthetic_tasks"), help="where they go")
    arguments.add_argument("--out", type=Path, help="folder for the CSVs, the figures and the page")
    arguments.add_argument("--list", action="store_true", help="only print the commands")
    arguments.add_argument("--page", action="store_true", help="train nothing: draw and write from the CSVs")
    arguments.add_argument(
        "overrides", nargs="*", help="further settings of every run, such as trainer.max_steps=9"
    )
    options = arguments.parse_args()
    runs = list(all_runs(options.seeds, options.runs))
    if options.list:
        for run in runs:
            print(shlex.join([*run.command, *options.overrides]))
            if run.task == "induction_heads":
                print(shlex.join(run.measuring))
        return
    if options.out is None:
        arguments.error("--out says where the figures go")
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.page:
        with ThreadPoolExecutor(options.processes) as pool:
            finished = list(pool.map(lambda run: finish(run, options.overrides), runs))
        write_rows([result for result, _ in finished], RESULT_COLUMNS, options.out / RESULTS)
        write_rows([row for _, rows in finished for row in rows], LENGTH_COLUMNS, options.out / LENGTHS)
    results, lengths = (read(options.out / name) for name in (RESULTS, LENGTHS))
    draw(results, lengths, options.out)
    (options.out / "synthetic_tasks.md").write_text(page(results, lengths))


def all_runs(seeds: Sequence[int], folder: Path) -> Iterator[Run]:
    for task, kinds in (
        ("selective_copying", PAPER + OTHERS),
        ("induction_heads", HEADS),
        ("copying", PAPER + OTHERS),
    ):
        for seed in seeds:
            for mixer, block, mlp in kinds:
                yield Run(task, mixer, block, mlp, seed, folder)


def finish(run: Run, overrides: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train a run to its end, and measure it: its row, and its rows by length."""
    from measuring import machine

    command = [*run.command, *overrides]
    summary = called([*command, "json=true"])
    figure = summary["validation"]
    row = run.columns | {"parameters": summary["parameters"], "steps": summary["step"]}
    row |= {"training_seconds": round(summary["training_seconds"], 1), "machine": machine(threads=1)}
    row |= {key: figure[key] for key in ("accuracy", "sequence_accuracy", "chance")}
    row |= {"bits_per_answer": figure["bits_per_byte"], "command": shlex.join(command)}
    print(
        f"{run.task}, {run.mixer} ({run.block}), seed {run.seed}: {figure['accuracy']:.2%}", file=sys.stderr
    )
    if run.task != "induction_heads":
        return row, []
    found = called(run.measuring)["lengths"]["by_length"]
    keys = ("length", "sequences", "accuracy")
    words = {"command": shlex.join(run.measuring)}
    return row, [run.columns | {key: each[key] for key in keys} | words for each in found]


def called(command: Sequence[str]) -> dict[str, Any]:
    """The JSON that a command of mambabyte prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of one of the CSVs; none if there is no such file."""
    return read_rows(path, words=("task", "mixer", "block", "mlp", "machine", "command"))


if __name__ == "__main__":
    main()
