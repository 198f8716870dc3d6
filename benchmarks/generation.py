"""Bytes generated per second with weights in fp32, bf16 and int8, against transformers' `generate`.

    python benchmarks/generation.py [--d-model 256 --layers 4 --bytes 256]
    python benchmarks/generation.py --d-model 512 --layers 12 --bytes 64

All decode greedily from the same prompt; transformers has the same weights, in fp32. The other limit is
reading the weights once for each byte, at the bandwidth with which an array larger than any cache is summed
in the same run; weights that a cache holds can be read faster. Install transformers with
`pip install -e '.[bench]'`; if missing, it is reported and skipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measuring import measure, parser, report
from train_step import transformers_model

from mambabyte.generation import Sampler, generate
from mambabyte.models import MambaByteConfig
from mambabyte.ops.step import STORAGE

PROMPT = b"The bytes of a text, "
READ_BYTES = 512 << 20


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=5)
    for name, default in (("d-model", 256), ("layers", 4), ("states", 16), ("bytes", 256)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    torch.manual_seed(0)
    shape = {"d_model": options.d_model, "n_layer": options.layers, "d_state": options.states}
    model = MambaByteConfig(**shape, norm="rms", tie_embeddings=True).build().eval()
    array = torch.ones(READ_BYTES // 4)

    def ours(weights: str) -> list[int]:
        return list(generate(model, PROMPT, options.bytes, Sampler(temperature=0), weights))

    calls: dict[str, Callable[[], object]] = {"reading memory": array.sum}
    calls |= {f"mambabyte {weights}": lambda weights=weights: ours(weights) for weights in STORAGE}
    peer = transformers_model(model)
    if peer is not None:
        peer.eval()
        prompt = torch.tensor([list(PROMPT)])
        length = {"max_new_tokens": options.bytes, "min_new_tokens": options.bytes, "use_cache": True}

        def theirs() -> list[int]:
            with torch.no_grad():
                return peer.generate(prompt, do_sample=False, pad_token_id=0, **length)[0].tolist()

        calls["transformers generate"] = theirs
        assert theirs()[len(PROMPT) :] == ours("fp32"), "the peer generates different bytes"
    timings = measure(calls, options.repeats)
    bandwidth = READ_BYTES / timings["reading memory"].median
    ratios = {}
    for weights in STORAGE:
        median = timings[f"mambabyte {weights}"].median
        if peer is not None:
            ratios[f"transformers / ours {weights}"] = timings["transformers generate"].median / median
        reading = options.bytes * weight_bytes(model, weights) / bandwidth
        ratios[f"reading weights / ours {weights}"] = reading / median
    rates = {
        f"{name}: bytes per second": round(options.bytes / t.median)
        for name, t in timings.items()
        if name != "reading memory"
    }
    setting = {key: value for key, value in vars(options).items() if key != "json"}
    setting["memory_gb_per_second"] = round(bandwidth / 1e9, 1)
    report("generation", timings, ratios, options.json, **setting, **rates)


def weight_bytes(model: torch.nn.Module, weights: str) -> int:
    """What one step reads of the weights: all that are no embedding, the head's tied one included."""
    size = {"fp32": 4, "bf16": 2, "int8": 1}[weights]
    total = 0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        rounded = name.endswith(("in_proj.weight", "x_proj.weight", "out_proj.weight", "lm_head.weight"))
        if name != "backbone.embedding.weight":
            total += parameter.numel() * (size if rounded else 4)
    return total


if __name__ == "__main__":
    main()
