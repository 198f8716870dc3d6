"""A training step of each baseline, compared with a popular public implementation of equal size.

    python benchmarks/baselines.py [--d-model 256 --layers 4 --length 1024 --batch 2]
        [--spacebyte FOLDER --only spacebyte]

A step is forward, backward and AdamW on the text of Python's help in fp32; ours and theirs alternate. Times
are per byte trained on, because perceiver-ar-pytorch trains on the last half of a window and ours on all of
it. Install the peers with `pip install -e ".[bench]"`; missing ones are reported and skipped. They use their
fastest attention. SpaceByte's peer is the authors' code: `git clone https://github.com/kjslag/spacebyte` and
give the folder. Both have the same weights, which must give the same logits, and room for all patches.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import torch
from measuring import measure, parser, report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mambabyte.models import (
    LSTMConfig,
    MegaByteConfig,
    PerceiverARConfig,
    SpaceByte,
    SpaceByteConfig,
    TransformerConfig,
)

PATCH = 4
Loss = Callable[[Tensor], Tensor]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=7)
    for name, default in (("d-model", 256), ("layers", 4), ("length", 1024), ("batch", 2)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--spacebyte", type=Path, help="the folder of the authors' SpaceByte")
    arguments.add_argument("--only", help="the name of one of our models")
    options = arguments.parse_args()
    torch.manual_seed(0)
    bytes = text(options.batch, options.length + 1)
    calls: dict[str, Callable[[], object]] = {}
    trained: dict[str, int] = {}
    parameters: dict[str, int] = {}

    def add(name: str, module: nn.Module, loss: Loss, trained_bytes: int) -> None:
        calls[name], trained[name] = training_step(module, loss, bytes), trained_bytes
        parameters[name] = sum(p.numel() for p in module.parameters())

    chosen = [pair for pair in pairs(options) if options.only in (None, pair[0])]
    for ours, config, peer, package, build in chosen:
        model = config.build()
        add(ours, model, next_byte_loss(model), bytes[:, 1:].numel())
        if package == "spacebyte":
            if options.spacebyte is None:
                print("skipped: SpaceByte's authors' code, without --spacebyte", file=sys.stderr)
            else:
                add(peer, *authors_spacebyte(options, model, bytes))
            continue
        if importlib.util.find_spec(package) is None:
            print(f"skipped: {peer} not installed", file=sys.stderr)
            continue
        add(peer, *build(options))

    timings = measure(calls, options.repeats)
    per_byte = {name: timing.median / trained[name] for name, timing in timings.items()}
    ratios = {
        f"{peer} / {ours}": per_byte[peer] / per_byte[ours]
        for ours, _, peer, *_ in chosen
        if peer in per_byte
    }
    setting = {key: getattr(options, key) for key in ("d_model", "layers", "length", "batch", "repeats")}
    rates = {name: round(1 / seconds) for name, seconds in per_byte.items()}
    report(
        "training step of the baselines", timings, ratios, options.json, **setting, parameters=parameters,
        bytes_per_second=rates,
    )  # fmt: skip


def pairs(options: argparse.Namespace) -> list[tuple]:
    """(our name, our config, the peer's name, its package, its builder), all of the same width and depth."""
    d, layers, heads = options.d_model, options.layers, options.d_model // 64
    half = max(1, layers // 2)
    return [
        (
            "transformer",
            TransformerConfig(d_model=d, n_layer=layers, n_head=heads),
            "x-transformers",
            "x_transformers",
            x_transformers,
        ),
        (
            "megabyte",
            MegaByteConfig(
                patch_size=PATCH, max_length=options.length, d_model=d, n_layer=half, n_head=heads,
                local_d_model=d, local_n_layer=half, local_n_head=heads,
            ),
            "MEGABYTE-pytorch",
            "MEGABYTE_pytorch",
            megabyte_pytorch,
        ),
        (
            "perceiver_ar",
            PerceiverARConfig(n_latents=options.length // 2, d_model=d, n_layer=layers, n_head=heads),
            "perceiver-ar-pytorch",
            "perceiver_ar_pytorch",
            perceiver_ar_pytorch,
        ),
        (
            "spacebyte",
            SpaceByteConfig(
                max_length=options.length, d_model=d, n_layer=layers, n_head=heads, local_d_model=d // 2,
                local_n_layer=layers, local_n_head=max(1, heads // 2), local_window=d // 2 + 1,
            ),
            "authors' SpaceByte",
            "spacebyte",
            None,
        ),
        ("lstm", LSTMConfig(d_model=d, n_layer=layers), "torch.nn.LSTM", "torch", plain_lstm),
    ]  # fmt: skip


def x_transformers(options: argparse.Namespace) -> tuple[nn.Module, Loss, int]:
    from x_transformers import Decoder, TransformerWrapper

    model = TransformerWrapper(
        num_tokens=256, max_seq_len=options.length, use_abs_pos_emb=False, tie_embedding=True,
        attn_layers=Decoder(
            dim=options.d_model, depth=options.layers, heads=options.d_model // 64, rotary_pos_emb=True,
            use_rmsnorm=True, ff_no_bias=True, attn_flash=True,
        ),
    )  # fmt: skip
    return model, next_byte_loss(model), options.batch * options.length


def megabyte_pytorch(options: argparse.Namespace) -> tuple[nn.Module, Loss, int]:
    from MEGABYTE_pytorch import MEGABYTE

    half = max(1, options.layers // 2)
    model = MEGABYTE(
        num_tokens=256, dim=(options.d_model, options.d_model), depth=(half, half),
        max_seq_len=(options.length // PATCH, PATCH), heads=options.d_model // 64, flash_attn=True,
        pos_emb=True,
    )  # fmt: skip
    # it also predicts a window's first byte, so drop one byte to train on as many as ours
    return model, lambda x: model(x[:, 1:], return_loss=True), options.batch * options.length


def perceiver_ar_pytorch(options: argparse.Namespace) -> tuple[nn.Module, Loss, int]:
    from perceiver_ar_pytorch import PerceiverAR

    prefix = options.length - options.length // 2
    model = PerceiverAR(
        num_tokens=256, dim=options.d_model, depth=options.layers - 1, max_seq_len=options.length,
        cross_attn_seq_len=prefix, heads=options.d_model // 64, perceive_max_heads_process=options.d_model,
    )  # fmt: skip
    trained = options.batch * (options.length - prefix)
    return model, lambda x: model(x[:, :-1], labels=x[:, 1:]), trained


def authors_spacebyte(
    options: argparse.Namespace, ours: SpaceByte, bytes: Tensor
) -> tuple[nn.Module, Loss, int]:
    sys.path.insert(0, str(options.spacebyte))
    for package in ("psutil", "sentencepiece", "tiktoken"):  # imported there, but not needed for a step
        if importlib.util.find_spec(package) is None:
            sys.modules[package] = ModuleType(package)
    theirs = importlib.import_module("spacebyte")
    read = bytes[:, :-1]
    patches = max(round(rate * options.length) for row in read for rate in ours.chunk_rates(row[None]))
    config = theirs.SpaceByteConfig(
        vocab_size=256, BOS=255, d_model=options.d_model, n_layers=options.layers, rope=True,
        context_size=options.length, global_context_size=patches, d_local=options.d_model // 2,
        n_local_layers=options.layers,
    )  # fmt: skip
    model = theirs.SpaceByte(config)
    weights = ours.state_dict()
    weights["global_position_encoding"] = weights["global_position_encoding"][:patches]
    model.load_state_dict(weights)
    # fp32 in another order, logits of order 5
    torch.testing.assert_close(model(read)[0], ours(read), atol=1e-4, rtol=0)

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(model(x[:, :-1])[0].flatten(0, 1), x[:, 1:].flatten())

    return model, loss, read.numel()


def plain_lstm(options: argparse.Namespace) -> tuple[nn.Module, Loss, int]:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(256, options.d_model)
            self.lstm = nn.LSTM(options.d_model, options.d_model, options.layers, batch_first=True)
            self.head = nn.Linear(options.d_model, 256, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(self.embedding(x))[0])

    model = Plain()
    return model, next_byte_loss(model), options.batch * options.length


def text(batch: int, length: int) -> Tensor:
    """Rows (batch, length) of English, each after byte 255. It holds no 0: two of the peers treat that as
    padding and would train on fewer bytes."""
    rows = "".join(topics.values()).encode()[: batch * length].ljust(batch * length)
    bytes = torch.frombuffer(bytearray(rows), dtype=torch.uint8).long().view(batch, length)
    bytes[:, 0] = 255
    return bytes


def next_byte_loss(model: nn.Module) -> Loss:
    return lambda x: cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


def training_step(module: nn.Module, loss: Loss, bytes: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss(bytes).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
