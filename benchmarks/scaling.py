"""Time and memory of one layer against the length of the sequence: Mamba's figure 8 on this machine.

    python benchmarks/scaling.py --out docs/benchmarks           # writes scaling.csv, scaling.png, scaling.md
    python benchmarks/scaling.py --longest 20 --out docs/benchmarks
    python benchmarks/scaling.py --page --out docs/benchmarks    # figure and page, from the CSV alone

Training is forward and backward of one sequence in fp32; "one byte more" is a step after a sequence of that
length. Layers alternate within a round, each point in a process of its own; its memory is what the pass adds
to that process at its peak. A layer's longer sequences are left out once one of its passes has taken longer
than `--most-seconds`, or twice its memory would be more than half of what is free.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from csv_rows import read_rows, write_rows
from measuring import machine, parser
from scaling_layers import LAYERS, Layer
from scaling_page import page, plot

from mambabyte.runtime.memory import PeakMemory, available_memory

COLUMNS = (
    *("layer", "length", "width", "training_seconds", "training_fastest", "training_slowest"),
    *("step_seconds", "training_bytes", "state_bytes", "rounds", "machine"),
)
_STEPS = 20  # in the time of one byte more


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=3)
    arguments.add_argument("--width", type=int, default=256, help="channels")
    arguments.add_argument("--shortest", type=int, default=9, help="power of two of the shortest sequence")
    arguments.add_argument("--longest", type=int, default=17, help="power of two of the longest sequence")
    arguments.add_argument("--most-seconds", type=float, default=60.0, help="of a pass, then no longer ones")
    arguments.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    arguments.add_argument("--out", type=Path, help="folder for scaling.csv, scaling.png and scaling.md")
    arguments.add_argument("--page", action="store_true", help="measure nothing: draw and write from the CSV")
    arguments.add_argument(
        "--point", nargs=2, metavar=("LAYER", "LENGTH"), help="measure this, in this process"
    )
    options = arguments.parse_args()
    if options.point:
        print(json.dumps(measure_point(options.point[0], int(options.point[1]), options.width)))
        return
    if options.page and options.out is None:
        arguments.error("--page needs --out")
    rows = read(options.out / "scaling.csv") if options.page else measure_all(options)
    if options.json:
        print(json.dumps(rows))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.page:
            write(rows, options.out / "scaling.csv")
        if rows:
            plot(rows, options.out / "scaling.png")
        (options.out / "scaling.md").write_text(page(rows))
    elif not options.json:
        print(page(rows))


def measure_all(options: Any) -> list[dict[str, Any]]:
    points: dict[tuple[str, int], list[dict[str, float]]] = {}
    stopped: set[str] = set()
    for power in range(options.shortest, options.longest + 1):
        length = 2**power
        for _ in range(options.repeats):
            for name in options.layers:
                if name in stopped:
                    continue
                print(f"\r{name}, {length:,} {' ' * 20}", end="", file=sys.stderr, flush=True)
                found = in_a_process(name, length, options.width)
                if found is None or too_much(found, options.most_seconds):
                    stopped.add(name)
                if found is not None:
                    points.setdefault((name, length), []).append(found)
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
    rows = []
    for (name, length), found in points.items():
        seconds = [each["training_seconds"] for each in found]
        medians = {key: statistics.median(each[key] for each in found) for key in found[0]}
        row = {"layer": name, "length": length, "width": options.width, **medians}
        row |= {"training_fastest": min(seconds), "training_slowest": max(seconds)}
        rows.append({**row, "rounds": len(found), "machine": machine()})
    return rows


def in_a_process(name: str, length: int, width: int) -> dict[str, float] | None:
    """The figures of one point, or None if it could not be measured."""
    command = [sys.executable, __file__, "--width", str(width), "--point", name, str(length)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"\n{name} at {length:,} failed: {done.stderr.splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def too_much(found: dict[str, float], most_seconds: float) -> bool:
    free = available_memory(torch.device("cpu"))
    return found["training_seconds"] > most_seconds or (
        free is not None and 2 * found["training_bytes"] > free / 2
    )


def measure_point(name: str, length: int, width: int) -> dict[str, float]:
    torch.manual_seed(0)
    layer = LAYERS[name](width, length)
    training_pass(layer, width, min(64, length))()  # builds kernels and gradients
    memory = PeakMemory(torch.device("cpu"))
    before = memory.bytes()
    run = training_pass(layer, width, length)
    run()
    peak = memory.bytes()
    training = timed(run, 1)
    with torch.no_grad():
        state, x = layer.state_after(length), torch.randn(1, width)
        kept = size(state)

        def steps() -> None:
            nonlocal state
            for _ in range(_STEPS):
                _, state = layer.step(x, state)

        steps()
        step = timed(steps, 10) / _STEPS
    return {
        "training_seconds": training,
        "step_seconds": step,
        "training_bytes": peak - before if peak is not None and before is not None else math.nan,
        "state_bytes": kept,
    }


def training_pass(layer: Layer, width: int, length: int) -> Callable[[], None]:
    x, gradient = torch.randn(1, length, width, requires_grad=True), torch.randn(1, length, width)

    def run() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(gradient)

    return run


def timed(call: Callable[[], None], repeats: int) -> float:
    """The fastest of some calls, in seconds."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def size(state: Any) -> int:
    """The bytes of a state's tensors."""
    if isinstance(state, (tuple, list)):
        return sum(map(size, state))
    return state.numel() * state.element_size()


def write(rows: list[dict[str, Any]], path: Path) -> None:
    write_rows(rows, COLUMNS, path)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a scaling.csv; none if there is no such file."""
    return read_rows(path, words=("layer", "machine"), whole=("length", "width", "rounds"))


if __name__ == "__main__":
    main()
