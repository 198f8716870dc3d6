"""Bytes generated per second, compared with transformers' `generate` on the same weights.

    python benchmarks/generation.py [--d-model 256 --layers 4 --bytes 256]

Both decode greedily from the same prompt, in fp32. Install transformers with `pip install -e '.[bench]'`; if
missing, it is reported and skipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measuring import measure, parser, report
from train_step import transformers_model

from mambabyte.generation import Sampler, generate
from mambabyte.models import MambaByteConfig

PROMPT = b"The bytes of a text, "


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=5)
    for name, default in (("d-model", 256), ("layers", 4), ("states", 16), ("bytes", 256)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    torch.manual_seed(0)
    shape = {"d_model": options.d_model, "n_layer": options.layers, "d_state": options.states}
    model = MambaByteConfig(**shape, norm="rms", tie_embeddings=True).build().eval()

    def ours() -> list[int]:
        return list(generate(model, PROMPT, options.bytes, Sampler(temperature=0)))

    calls: dict[str, Callable[[], object]] = {"mambabyte": ours}
    peer = transformers_model(model)
    if peer is not None:
        peer.eval()
        prompt = torch.tensor([list(PROMPT)])
        length = {"max_new_tokens": options.bytes, "min_new_tokens": options.bytes, "use_cache": True}

        def theirs() -> list[int]:
            with torch.no_grad():
                return peer.generate(prompt, do_sample=False, pad_token_id=0, **length)[0].tolist()

        calls["transformers generate"] = theirs
        assert theirs()[len(PROMPT) :] == ours(), "the peer generates different bytes"
    timings = measure(calls, options.repeats)
    ratios = {
        f"{name} / ours": timing.median / timings["mambabyte"].median
        for name, timing in timings.items()
        if name != "mambabyte"
    }
    rates = {f"{name}: bytes per second": round(options.bytes / t.median) for name, t in timings.items()}
    setting = {key: value for key, value in vars(options).items() if key != "json"}
    report("generation", timings, ratios, options.json, **setting, **rates)


if __name__ == "__main__":
    main()
