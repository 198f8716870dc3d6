"""Seconds to load a MambaByte's weights from safetensors, against safetensors' own `load_file`.

    python benchmarks/loading.py [--d-model 1024 --layers 53]

The default shape has 353M parameters, 1.4 GB in a temporary folder. Both map the file into memory, so each is
timed twice: until it returns, and until every weight has been read once from the page cache.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from measuring import measure, parser, report
from safetensors.torch import load_file

import mambabyte
from mambabyte.checkpoints.building import shapes
from mambabyte.checkpoints.formats.layout import SAFETENSORS
from mambabyte.models import MambaByteConfig


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=7)
    arguments.add_argument("--d-model", type=int, default=1024)
    arguments.add_argument("--layers", type=int, default=53)
    options = arguments.parse_args()
    config = MambaByteConfig(d_model=options.d_model, n_layer=options.layers)
    size = 4 * sum(shape.numel() for shape in shapes(config).values())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        mambabyte.save(config.build(), folder)
        calls = {
            "load_file": lambda: load_file(folder / SAFETENSORS),
            "mambabyte.load": lambda: mambabyte.load(folder),
            "load_file, all read": lambda: read(load_file(folder / SAFETENSORS).values()),
            "mambabyte.load, all read": lambda: read(mambabyte.load(folder).parameters()),
        }
        timings = measure(calls, options.repeats)
    ratios = {
        f"mambabyte.load / load_file{reading}": timings[f"mambabyte.load{reading}"].median
        / timings[f"load_file{reading}"].median
        for reading in ("", ", all read")
    }
    report(
        "Loading weights", timings, ratios, options.json, d_model=options.d_model, layers=options.layers,
        megabytes=size // 10**6,
    )  # fmt: skip


@torch.no_grad()
def read(weights) -> None:
    for weight in weights:
        weight.sum()


if __name__ == "__main__":
    main()
