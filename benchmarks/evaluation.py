"""Evaluation and compression, compared with a training step, the forward pass and generation.

    python benchmarks/evaluation.py [--context 1024 --batch 8 --megabytes 10 --code-bytes 65536 --lanes 64]

The model is `conf/model/small.yaml`, untrained, on random bytes, because time does not depend on the content.
Each ratio is between timings of the same run. Peak memory is measured in a new process per document length.
"""

from __future__ import annotations

import io
import multiprocessing
import resource

import numpy as np
import torch
from measuring import measure, parser, report
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

from mambabyte.coding import decode, encode
from mambabyte.config.composition import config_dir
from mambabyte.data import ByteCorpus
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.generation import Sampler, generate
from mambabyte.models import ByteLM, config_from_dict

_GENERATED = 256


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=5)
    for name, default in (
        ("context", 1024),
        ("batch", 8),
        ("megabytes", 10),
        ("code-bytes", 1 << 16),
        ("lanes", 64),
    ):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    model, size = small_model(), options.context * options.batch
    # lr=0: all the work of a step, but the weights must stay those that the file was compressed with
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    windows = torch.from_numpy(random_bytes(size + options.batch)).long().view(options.batch, -1)
    text = random_bytes(options.code_bytes)
    lanes = options.lanes  # `mambabyte compress` uses 64 for 1 MB
    lengths = [len(part) for part in np.array_split(text, lanes)]
    compressed = io.BytesIO()
    threads = torch.get_num_threads()
    coded = encode(model, text, lengths, compressed, lanes, threads=threads)

    def train() -> None:
        optimizer.zero_grad()
        cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).backward()
        optimizer.step()

    @torch.no_grad()
    def forward() -> None:
        model(windows[:, :-1])

    @torch.no_grad()
    def forward_of_the_coded_bytes() -> None:
        for start in range(0, len(text), size):
            part = torch.from_numpy(text[start : start + size]).long()
            model(part.view(options.batch, -1) if len(part) == size else part[None])

    corpus = ByteCorpus(
        random_bytes(size), np.arange(options.batch + 1) * options.context, ["x"] * options.batch
    )
    disjoint, stateful = (
        Protocol(name, options.context, batch_size=options.batch) for name in ("disjoint", "stateful")
    )
    timings = measure(
        {
            "training step": train,
            "forward": forward,
            "evaluate, disjoint": lambda: evaluate(model, corpus, disjoint),
            "evaluate, stateful": lambda: evaluate(model, corpus, stateful),
            "forward of the coded bytes": forward_of_the_coded_bytes,
            "compress": lambda: encode(model, text, lengths, io.BytesIO(), lanes, threads=threads),
            "decompress": lambda: decode(
                model, io.BytesIO(compressed.getvalue()), lambda count: np.zeros(count, np.uint8)
            ),
            f"generate {_GENERATED} bytes": lambda: list(generate(model, b"a", _GENERATED, Sampler())),
        },
        options.repeats,
    )
    seconds = {name: timing.median for name, timing in timings.items()}
    per_byte = {name: seconds[name] / len(text) for name in ("compress", "decompress")}
    generated = seconds[f"generate {_GENERATED} bytes"] / _GENERATED
    ratios = {
        "training step / evaluate, disjoint": seconds["training step"] / seconds["evaluate, disjoint"],
        "training step / evaluate, stateful": seconds["training step"] / seconds["evaluate, stateful"],
        "evaluate, disjoint / forward": seconds["evaluate, disjoint"] / seconds["forward"],
        "compress / forward": seconds["compress"] / seconds["forward of the coded bytes"],
        "decompress / compress": seconds["decompress"] / seconds["compress"],
        "decompress / generate, per byte": per_byte["decompress"] / generated,
    }
    peaks = [peak_memory(length) for length in (options.megabytes * 100_000, options.megabytes * 1_000_000)]
    ratios["memory, ten times the document"] = peaks[1] / peaks[0]
    report(
        "evaluation and compression", timings, ratios, options.json,
        context=options.context, batch=options.batch, repeats=options.repeats, lanes=lanes,
        code_bytes=len(text), coded_bytes=coded.file_bytes, parameters=model.num_parameters(),
        seconds_to_compress_1_MB=round(1e6 * per_byte["compress"]),
        peak_megabytes=[round(peak) for peak in peaks],
    )  # fmt: skip


def small_model() -> ByteLM:
    torch.manual_seed(0)
    description = OmegaConf.to_container(OmegaConf.load(config_dir() / "model" / "small.yaml"))
    return config_from_dict(description | {"_target_": "mambabyte.models.MambaByteConfig"}).build()


def random_bytes(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8)


def peak_memory(length: int) -> float:
    """Peak memory in MB of a new process that evaluates one document of `length` bytes, stateful."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_evaluate_one_document, (length,))


def _evaluate_one_document(length: int) -> float:
    # a narrow model saves minutes, and memory must not grow with the length at any width
    torch.manual_seed(0)
    description = {"_target_": "mambabyte.models.MambaByteConfig", "d_model": 32, "n_layer": 2, "d_state": 4}
    corpus = ByteCorpus(random_bytes(length), np.array([0, length]), ["one document"])
    evaluate(config_from_dict(description).build(), corpus, Protocol("stateful", 8192))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
