"""A training step of each baseline, compared with a popular public implementation of equal size.

    python benchmarks/baselines.py [--d-model 256 --layers 4 --length 1024 --batch 2]

A step is forward, backward and AdamW on random bytes in fp32; ours and theirs alternate. Times are per byte
trained on, because perceiver-ar-pytorch trains on the last half of a window and ours on all of it. Install
the peers with `pip install -e ".[bench]"`; missing ones are reported and skipped. They use their fastest
attention.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable

import torch
from measuring import measure, parser, report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mambabyte.models import LSTMConfig, MegaByteConfig, PerceiverARConfig, TransformerConfig

PATCH = 4
Loss = Callable[[Tensor], Tensor]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=7)
    for name, default in (("d-model", 256), ("layers", 4), ("length", 1024), ("batch", 2)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    torch.manual_seed(0)
    # no 0: two of the peers treat it as padding and would train on fewer bytes
    bytes = torch.randint(1, 256, (options.batch, options.length + 1))
    calls: dict[str, Callable[[], object]] = {}
    trained: dict[str, int] = {}
    parameters: dict[str, int] = {}

    def add(name: str, module: nn.Module, loss: Loss, trained_bytes: int) -> None:
        calls[name], trained[name] = training_step(module, loss, bytes), trained_bytes
        parameters[name] = sum(p.numel() for p in module.parameters())

    for ours, config, peer, package, build in pairs(options):
        model = config.build()
        add(ours, model, next_byte_loss(model), bytes[:, 1:].numel())
        if importlib.util.find_spec(package) is None:
            print(f"skipped: {peer} not installed", file=sys.stderr)
            continue
        add(peer, *build(options))

    timings = measure(calls, options.repeats)
    per_byte = {name: timing.median / trained[name] for name, timing in timings.items()}
    ratios = {
        f"{peer} / {ours}": per_byte[peer] / per_byte[ours]
        for ours, _, peer, *_ in pairs(options)
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
