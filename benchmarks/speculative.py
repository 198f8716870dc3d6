"""Bytes per second with drafters, against plain decoding of the same texts.

    python benchmarks/speculative.py CKPT FILE [--draft ngram --draft heads --draft SMALLER_CKPT]
                                     [--temperature 0.8]

Pieces of FILE, such as source code or a book, are the prompts. Drafters and plain decoding take turns. With
`--acceptance exact` the texts have to be those of plain decoding; with top_beta they are others. A pair of
models on books, of which the smaller has an eighth of the parameters or less:

    mambabyte train name=model data=files data.path=BOOKS model.d_model=512 model.n_layer=12
    mambabyte train name=drafter data=files data.path=BOOKS model.d_model=128 model.n_layer=4

The more a step of the model waits for its weights, the more a draft wins: a window reads them once.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from pathlib import Path

import torch
from measuring import Timing, parser, report

from mambabyte import load
from mambabyte.generation import Batch, Context, Row, Sampler, read
from mambabyte.generation.speculative import Drafting, Statistics, drafting_from
from mambabyte.models import ByteLM


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=3)
    arguments.add_argument("ckpt", help="the model: a run directory, a checkpoint or a model's folder")
    arguments.add_argument("file", type=Path, help="the prompts are pieces of it")
    arguments.add_argument(
        "--draft", action="append", help="ngram, heads or a smaller model; ngram if left out"
    )
    arguments.add_argument("--acceptance", choices=("exact", "top_beta"), default="exact")
    arguments.add_argument("--temperature", type=float, default=0.8)
    for name, default in (("bytes", 512), ("texts", 4), ("batch", 1), ("prompt-bytes", 4096)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    model = load(options.ckpt)
    prompts = pieces(options.file.read_bytes(), options.texts, options.prompt_bytes)
    contexts = [read(model, prompt) for prompt in prompts]
    names: dict[str, str | ByteLM | None] = {"plain": None}
    for draft in options.draft or ["ngram"]:
        known = draft in ("ngram", "heads")
        names |= {draft: draft} if known else {f"model {Path(draft).name}": load(draft)}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, Statistics] = {}
    setting: dict[str, str] = {}
    for turn in range(options.repeats + 1):  # the first one warms up, and compares
        for name, draft in names.items():
            drafting = None if draft is None else drafting_from(draft, model, acceptance=options.acceptance)
            texts, elapsed = write(model, contexts, options, drafting)
            if drafting is not None:
                found[name] = drafting.statistics
            if turn:
                seconds[name].append(elapsed)
            elif name == "plain":
                expected = texts
            elif options.acceptance == "exact":
                assert texts == expected, f"{name} changes the text"
    timings = {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}
    ratios = {f"{name} / plain": timings["plain"].median / timings[name].median for name in found}
    for name, its in found.items():
        setting[f"{name}: acceptance"] = f"{its.acceptance or 0:.3f}"
        accepted = its.accepted / max(its.rounds, 1) / options.batch
        setting[f"{name}: bytes of a text in a drafted round"] = f"{1 + accepted:.2f}"
    count = options.texts * options.bytes
    setting |= {f"{name}: bytes per second": f"{count / t.median:.0f}" for name, t in timings.items()}
    models = {"model": model, **{name: draft for name, draft in names.items() if isinstance(draft, ByteLM)}}
    setting |= {f"{name}: parameters": str(its.num_parameters()) for name, its in models.items()}
    shown = {key: str(value) for key, value in vars(options).items() if key not in ("json", "draft")}
    report("speculative", timings, ratios, options.json, **shown, **setting)


def pieces(data: bytes, count: int, length: int) -> list[bytes]:
    """Prompts, spread evenly over a file."""
    if len(data) < count * length:
        raise SystemExit(f"the file has {len(data)} bytes, and {count} prompts of {length} were asked for")
    stride = len(data) // count
    return [data[i * stride : i * stride + length] for i in range(count)]


@torch.no_grad()
def write(
    model: ByteLM, contexts: list[Context], options: Namespace, drafting: Drafting | None
) -> tuple[list[bytes], float]:
    """The texts, so many at a time, and the seconds of the steps: prompts are read before."""
    batch, texts, elapsed = Batch(model, drafting=drafting), {}, 0.0
    waiting = list(enumerate(contexts))
    while waiting or batch.rows:
        while waiting and len(batch.rows) < options.batch:
            sample, context = waiting.pop(0)
            row = Row(Sampler(options.temperature, sample=sample), options.bytes)
            texts[row] = bytearray()
            batch.add(context, [row])
        begin = time.perf_counter()
        drawn = batch.step()
        elapsed += time.perf_counter() - begin
        for its in drawn:
            texts[its.row] += its.text
    return [bytes(text) for text in texts.values()], elapsed


if __name__ == "__main__":
    main()
