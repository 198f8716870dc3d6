"""Validation bits per byte after five minutes of training, compared with transformers' Mamba.

    python benchmarks/five_minutes.py --data PATH [--seconds 300] [--no-peer]

PATH is a folder of parquet files in PG19's schema (train-*, validation-*), or any file or folder; the default
is Python's standard library. Both models have the same shape, start from the same weights and train one after
the other in the same loop: packed windows, AdamW, a schedule over elapsed time. Install the peer with `pip
install -e '.[bench]'`; if missing, it is reported and skipped. Both are evaluated with the `disjoint`
protocol, ours also with `stateful`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import machine, parser
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train_step import transformers_model

from mambabyte.data import ByteCorpus, FilesSource, HuggingFaceSource, StandardLibrarySource, prepare
from mambabyte.data.windows.batches import as_tensors
from mambabyte.data.windows.shuffled import ShuffledWindows
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.evaluation.studies.compressors import compressor_bits_per_byte
from mambabyte.models import ByteLM, MambaByteConfig
from mambabyte.models.byte_lm import State
from mambabyte.training.optimizer import AdamWConfig

SCHEDULE = 1000  # steps of the learning rate's schedule, spread over the time


class Peer(ByteLM):
    """transformers' model as a ByteLM, for the evaluator."""

    def __init__(self, config: MambaByteConfig, model: nn.Module) -> None:
        super().__init__(config)
        self.inner = model

    def forward(
        self, bytes: Tensor, state: State | None = None, document_start: Tensor | None = None
    ) -> Tensor:
        return self.inner(bytes.long()).logits


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=1)
    arguments.add_argument(
        "--data", type=Path, help="parquet folder, file or folder (default: Python's standard library)"
    )
    arguments.add_argument("--seconds", type=float, default=300.0)
    arguments.add_argument("--context-length", type=int, default=256)
    arguments.add_argument("--batch", type=int, default=8, help="windows per step")
    arguments.add_argument("--learning-rate", type=float, default=4e-3)
    arguments.add_argument("--d-model", type=int, default=192)
    arguments.add_argument("--layers", type=int, default=7)
    arguments.add_argument("--states", type=int, default=8)
    arguments.add_argument("--no-peer", action="store_true")
    options = arguments.parse_args()
    train_corpus, validation = corpora(options.data)
    windows = ShuffledWindows("packed", train_corpus, options.context_length, seed=0)

    torch.manual_seed(0)
    shape = {"d_model": options.d_model, "n_layer": options.layers, "d_state": options.states}
    config = MambaByteConfig(**shape, norm="rms", tie_embeddings=True)
    model = config.build()
    implementations: dict[str, tuple[ByteLM, str]] = {"mambabyte": (model, "bf16")}
    if not options.no_peer:
        peer = transformers_model(model)  # takes a copy of the weights
        if peer is not None:
            implementations["transformers with mambapy"] = (Peer(config, peer), "fp32")

    results: dict[str, dict[str, float]] = {}
    for name, (implementation, precision) in implementations.items():
        seen = train(implementation, windows, precision, options)
        results[name] = {"bytes_seen": seen, "bytes_per_second": seen / options.seconds}
        for protocol in ("disjoint", "stateful") if implementation is model else ("disjoint",):
            figure = evaluate(implementation, validation, Protocol(protocol, options.context_length))
            results[name][f"{protocol}_bits_per_byte"] = figure.bits_per_byte
    compressors = compressor_bits_per_byte([validation.bytes])
    if options.json:
        setting = {key: str(value) for key, value in vars(options).items()}
        print(json.dumps({"machine": machine(), **setting, "results": results, "compressors": compressors}))
        return
    print(machine())
    for name, figures in results.items():
        print(f"  {name:28}", "   ".join(f"{key} {value:,.4g}" for key, value in figures.items()))
    print("  compressors                 ", "   ".join(f"{k} {v:.3f}" for k, v in compressors.items()))


def corpora(path: Path | None) -> tuple[ByteCorpus, ByteCorpus]:
    if path is None:
        source = StandardLibrarySource()
    elif path.is_dir() and list(path.glob("train-*.parquet")):
        source = HuggingFaceSource(path=str(path))
    else:
        source = FilesSource(str(path))
    folder = Path(tempfile.gettempdir()) / "mambabyte-benchmark"
    return prepare(source, "train", folder), prepare(source, "validation", folder)


def train(model: ByteLM, windows: ShuffledWindows, precision: str, options) -> int:
    """Train for `options.seconds` and return the bytes seen."""
    schedule = AdamWConfig(options.learning_rate, warmup_steps=SCHEDULE // 20, final_learning_rate_ratio=0.02)
    optimizer = schedule.build(model)
    model.train()
    started, step = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < options.seconds:
        rate = schedule.learning_rate_at(int(SCHEDULE * elapsed / options.seconds), SCHEDULE)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = as_tensors(windows.batch(np.arange(step * options.batch, (step + 1) * options.batch)))
        inputs, targets = batch["bytes"], batch["targets"].long()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(inputs)
        cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        print(f"\r{elapsed:.0f}/{options.seconds:.0f} s, step {step}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
    model.eval()
    return step * options.batch * options.context_length


if __name__ == "__main__":
    main()
