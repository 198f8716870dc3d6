"""Bits per byte of a text with a model's weights in fp32, bf16 and int8, as `generate` rounds them.

    python benchmarks/rounding.py --ckpt runs/quickstart --text TEXT [--bytes 20480 --rows 16]

TEXT is a file that the model was not trained on. It is scored by the steps of generation: each of the rows is
a piece of it, read from its beginning with the state carried.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import mambabyte
from mambabyte.models import MambaByte
from mambabyte.ops.step import STORAGE


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--ckpt", required=True, help="a run directory, a checkpoint file or an export")
    arguments.add_argument("--text", type=Path, required=True)
    arguments.add_argument("--bytes", type=int, default=20480, help="of the text's beginning")
    arguments.add_argument("--rows", type=int, default=16)
    options = arguments.parse_args()
    model = mambabyte.load(options.ckpt)
    if not isinstance(model, MambaByte):
        arguments.error(f"{options.ckpt} is no MambaByte model")
    text = torch.frombuffer(bytearray(options.text.read_bytes()[: options.bytes]), dtype=torch.uint8)
    length = len(text) // options.rows
    pieces = text[: options.rows * length].view(options.rows, length)
    print(f"{model.num_parameters():,} parameters, {options.rows} pieces of {length:,} bytes")
    exact = None
    for weights in STORAGE:
        measured = bits_per_byte(model, pieces, weights)
        exact = measured if exact is None else exact
        print(f"  {weights:6}{measured:10.5f} bits per byte{measured - exact:+12.5f}", flush=True)


@torch.no_grad()
def bits_per_byte(model: MambaByte, pieces: torch.Tensor, weights: str) -> float:
    """Of every byte but the first of each piece (rows, length)."""
    step = model.stepper(model.initial_state(len(pieces)), weights)
    nats = 0.0
    for byte, target in zip(pieces.T[:-1], pieces.T[1:], strict=True):
        nats += cross_entropy(step(byte).double(), target.long(), reduction="sum").item()
    return nats / math.log(2) / pieces[:, 1:].numel()


if __name__ == "__main__":
    main()
