"""A training step of a small model, compared with transformers' and with its matrix products alone.

    python benchmarks/train_step.py [--d-model 256 --layers 4 --length 1024 --batch 2]

A step is forward, backward and AdamW on random bytes. transformers' model has the same weights. Install the
peers with `pip install -e '.[bench]'`; missing ones are reported and skipped.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import torch
from measuring import measure, parser, report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mambabyte.models import MambaByte, MambaByteConfig


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=7)
    for name, default in (("d-model", 256), ("layers", 4), ("length", 1024), ("batch", 2), ("states", 16)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    torch.manual_seed(0)
    config = MambaByteConfig(
        d_model=options.d_model,
        n_layer=options.layers,
        d_state=options.states,
        norm="rms",
        tie_embeddings=True,
    )
    model = MambaByte(config)
    bytes = torch.randint(0, 256, (options.batch, options.length + 1))

    calls: dict[str, Callable[[], object]] = {}
    for precision in ("fp32", "bf16"):
        calls[f"mambabyte {precision}"] = training_step(model, bytes, precision)
        calls[f"matrix products alone {precision}"] = matrix_products(
            config, options.batch * options.length, precision
        )
    peer = transformers_model(model)
    if peer is not None:
        with torch.no_grad():
            ours, theirs = model(bytes[:, :64]), peer(bytes[:, :64]).logits
        assert (ours - theirs).abs().max() < 1e-3, "the peer computes a different result"
        calls["transformers with mambapy fp32"] = training_step(lambda x: peer(x).logits, bytes, "fp32", peer)

    timings = measure(calls, options.repeats)
    ratios = {
        f"limit / step, {precision}": timings[f"matrix products alone {precision}"].median
        / timings[f"mambabyte {precision}"].median
        for precision in ("fp32", "bf16")
    }
    if peer is not None:
        ratios["transformers / ours, fp32"] = (
            timings["transformers with mambapy fp32"].median / timings["mambabyte fp32"].median
        )
    rates = {
        f"bytes_per_second_{p}": round(bytes[:, 1:].numel() / timings[f"mambabyte {p}"].median)
        for p in ("fp32", "bf16")
    }
    setting = {
        key: getattr(options, key) for key in ("d_model", "layers", "length", "batch", "states", "repeats")
    }
    report(
        "training step", timings, ratios, options.json, **setting, parameters=model.num_parameters(), **rates
    )


def training_step(
    forward: Callable[[Tensor], Tensor], bytes: Tensor, precision: str, module: nn.Module | None = None
) -> Callable[[], None]:
    module = module if module is not None else forward  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = forward(bytes[:, :-1])
        cross_entropy(logits.float().flatten(0, 1), bytes[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def matrix_products(config: MambaByteConfig, rows: int, precision: str) -> Callable[[], None]:
    """Only the three products (one forward, two backward) of each linear layer and the head."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    d, inner, rank = config.d_model, config.d_inner, config.time_step_rank
    layer = [(d, 2 * inner), (inner, rank + 2 * config.d_state), (rank, inner), (inner, d)]
    products = []
    for columns, width in layer * config.n_layer + [(d, 256)]:
        x, weight, grad = torch.randn(rows, columns), torch.randn(width, columns), torch.randn(rows, width)
        products.append(tuple(t.to(dtype) for t in (x, weight, grad)))

    def run() -> None:
        for x, weight, grad in products:
            x @ weight.t(), grad @ weight, grad.t() @ x

    return run


def transformers_model(model: MambaByte) -> nn.Module | None:
    """The peer with this model's weights, or None, with a message, if it is not installed."""
    missing = [name for name in ("transformers", "mambapy") if not importlib.util.find_spec(name)]
    if missing:
        print(f"skipped: {' and '.join(missing)} not installed", file=sys.stderr)
        return None
    from transformers import MambaConfig, MambaForCausalLM

    config = model.config
    peer = MambaForCausalLM(
        MambaConfig(
            vocab_size=256, hidden_size=config.d_model, num_hidden_layers=config.n_layer,
            state_size=config.d_state, expand=config.expand, conv_kernel=config.d_conv, use_mambapy=True,
            use_cache=False, residual_in_fp32=True, layer_norm_epsilon=config.norm_epsilon,
            tie_word_embeddings=config.tie_embeddings,
        )
    )  # fmt: skip
    weights = {name.replace("embedding.", "embeddings."): value for name, value in model.state_dict().items()}
    peer.load_state_dict(weights)
    return peer


if __name__ == "__main__":
    main()
