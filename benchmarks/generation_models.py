"""Seconds for 8,192 bytes, and the time of a byte at each position: MambaByte, MegaByte and a Transformer
with as many parameters (table 4 of the MambaByte paper, arXiv 2401.13660, on this machine).

    python benchmarks/generation_models.py [--size small|medium] [--bytes 8192] [--csv FILE] [--plot FILE]

Untrained weights, one text, temperature 1, batch 1. The models take turns; a position's time is the median
over the turns of the mean of 256 bytes.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from measuring import Timing, parser, report

from mambabyte.generation import Sampler, generate
from mambabyte.models import ByteLM, MambaByteConfig, MegaByteConfig, TransformerConfig
from mambabyte.models.hyperparameters import ByteLMConfig

SPAN = 256  # bytes whose time is averaged
SIZES: dict[str, dict[str, ByteLMConfig]] = {
    "small": {
        "MambaByte": MambaByteConfig(d_model=256, n_layer=4, norm="rms", tie_embeddings=True),
        "MegaByte, P=8": MegaByteConfig(
            patch_size=8, d_model=192, n_layer=2, n_head=4, local_d_model=168, local_n_layer=2, local_n_head=4
        ),
        "Transformer": TransformerConfig(d_model=192, n_layer=4, n_head=4),
    },
    "medium": {
        "MambaByte": MambaByteConfig(d_model=512, n_layer=12, norm="rms", tie_embeddings=True),
        "MegaByte, P=8": MegaByteConfig(
            patch_size=8, d_model=768, n_layer=2, n_head=8, local_d_model=256, local_n_layer=8, local_n_head=4
        ),
        "Transformer": TransformerConfig(d_model=512, n_layer=6, n_head=8),
    },
}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=3)
    arguments.add_argument("--size", choices=SIZES, default="small")
    arguments.add_argument("--bytes", type=int, default=8192)
    arguments.add_argument("--csv", type=Path, help="where to write the time of a byte at each position")
    arguments.add_argument("--plot", type=Path, help="where to draw it")
    options = arguments.parse_args()
    torch.manual_seed(0)
    models = {
        name: config_of(config, options.bytes).build().eval() for name, config in SIZES[options.size].items()
    }
    turns: dict[str, list[list[float]]] = {name: [] for name in models}
    for turn in range(options.repeats):
        for name, model in models.items():
            print(
                f"\rturn {turn + 1}/{options.repeats}: {name}" + " " * 20, end="", file=sys.stderr, flush=True
            )
            turns[name].append(spans(model, options.bytes))
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    totals = {name: [sum(turn) * SPAN for turn in found] for name, found in turns.items()}
    timings = {n: Timing(statistics.median(t), min(t), max(t)) for n, t in totals.items()}
    ratios = {
        f"{name} / MambaByte": timings[name].median / timings["MambaByte"].median
        for name in models
        if name != "MambaByte"
    }
    per_byte = {n: [statistics.median(at) for at in zip(*found, strict=True)] for n, found in turns.items()}
    ratios |= {f"{name}: last / first {SPAN} bytes": times[-1] / times[0] for name, times in per_byte.items()}
    setting = {key: value for key, value in vars(options).items() if key not in ("json", "csv", "plot")}
    sizes = {f"{name}: parameters": model.num_parameters() for name, model in models.items()}
    report("generation_models", timings, ratios, options.json, **setting, **sizes)
    if options.csv:
        write(options.csv, per_byte)
    if options.plot:
        draw(options.plot, per_byte, sizes)


def config_of(config: ByteLMConfig, length: int) -> ByteLMConfig:
    """The config with positions for the prompt and the text."""
    if isinstance(config, MegaByteConfig):
        return replace(config, max_length=length + 64)
    return config


def spans(model: ByteLM, count: int) -> list[float]:
    """Seconds per byte of each span of a text of `count` bytes."""
    stream, found = generate(model, b"The bytes of a text, ", count, Sampler(1.0)), []
    next(stream)  # the prompt is read, and the kernels are built
    begin = time.perf_counter()
    for number, _ in enumerate(stream, start=1):
        if number % SPAN == 0 or number == count - 1:
            now = time.perf_counter()
            found.append((now - begin) / ((number - 1) % SPAN + 1))
            begin = now
    return found


def write(path: Path, per_byte: dict[str, list[float]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["bytes", *(f"{name} (ms per byte)" for name in per_byte)])
        for index, row in enumerate(zip(*per_byte.values(), strict=True)):
            table.writerow([(index + 1) * SPAN, *(f"{1e3 * seconds:.4f}" for seconds in row)])


def draw(path: Path, per_byte: dict[str, list[float]], sizes: dict[str, int]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, title in zip(figure.subplots(1, 2), ("one more byte", "all bytes so far"), strict=True):
        for name, times in per_byte.items():
            places = [(index + 1) * SPAN for index in range(len(times))]
            total = [SPAN * sum(times[: index + 1]) for index in range(len(times))]
            values = [1e3 * t for t in times] if title == "one more byte" else total
            millions = sizes[f"{name}: parameters"] / 1e6
            axes.plot(places, values, label=f"{name} ({millions:.2f} M)")
        axes.set(xlabel="bytes written", ylabel="ms" if title == "one more byte" else "seconds", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
