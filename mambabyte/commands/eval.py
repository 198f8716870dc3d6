"""mambabyte eval: measures a checkpoint on the data it was trained on, or on any other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from mambabyte.commands import CKPT, JSON, Command, Flag
from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import setting
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError

if TYPE_CHECKING:
    from mambabyte.data import ByteCorpus

Metric = Literal["bpb", "word_perplexity", "compressors", "noise", "lengths", "utf8", "proof", "heatmap"]


@dataclass(kw_only=True)
class EvalSettings(CommandSettings):
    """conf/eval.yaml"""

    yaml: ClassVar[str] = "eval"
    ckpt: str
    split: Literal["train", "validation", "test"]
    protocol: Literal["disjoint", "sliding", "stateful"]
    context_length: int | None = setting(at_least=1)
    stride: int | None
    batch_size: int
    precision: Literal["fp32", "bf16"]
    max_bytes: int | None
    device: str
    json: bool
    metrics: list[str]
    heatmap_bytes: int = setting(at_least=1)
    samples: int
    sample_bytes: int
    output_dir: Path
    save_every: float
    data: DataSettings | None = None

    def __post_init__(self) -> None:
        known = get_args(Metric)
        if not self.metrics or not set(self.metrics) <= set(known):
            raise UserError(f"metrics must be chosen from {', '.join(known)}, not {self.metrics}")
        if "proof" in self.metrics and self.protocol == "sliding":
            raise UserError(
                "--prove needs protocol=disjoint or stateful: a decoder cannot know what a sliding window "
                "has read ahead"
            )
        if "proof" in self.metrics and self.precision != "fp32":
            raise UserError("--prove needs precision=fp32, in which the coder computes")


def run(settings: EvalSettings) -> None:
    """Print the figures on stdout, as sentences or as one JSON object; progress goes to stderr.

    Under torchrun all ranks share the work, and the first prints.

    Raises:
        UserError: unreadable checkpoint, data or device that is not there.
    """
    from mambabyte import checkpoints
    from mambabyte.evaluation import SavedProgress, evaluate
    from mambabyte.evaluation.bits_per_byte import first_documents
    from mambabyte.evaluation.studies import presentation as figures
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.process_group import process_group
    from mambabyte.runtime.progress_bar import progress_bar

    metrics = settings.metrics
    with process_group(choose_device(settings.device)) as (device, rank):
        trained = checkpoints.run_config(settings.ckpt)
        model = checkpoints.load_model(settings.ckpt)
        corpus = _corpus(settings, trained)
        how: dict[str, Any] = {
            "protocol": settings.protocol,
            "context_length": settings.context_length or trained["context_length"],
            "batch_size": settings.batch_size,
            "device": device,
            "precision": settings.precision,
            "stride": settings.stride,
            "all_ranks": True,
            "saved_progress": SavedProgress(settings.output_dir, settings.save_every),
        }

        def measure(corpus: Any, label: str, max_bytes: int | None = None) -> Any:
            progress = progress_bar(label) if rank == 0 else None
            return evaluate(model, corpus, **how, max_bytes=max_bytes, progress=progress)

        result = measure(corpus, settings.protocol, settings.max_bytes)
        where = {"checkpoint": str(checkpoints.resolve(settings.ckpt)), "split": settings.split}
        found = figures.Found({**result.to_dict(), **where}, [f"{settings.split}: {result}"])
        if "noise" in metrics:
            figures.noise(settings, corpus, result, measure, found)
        if rank == 0:
            documents = first_documents(corpus, settings.max_bytes)
            if "word_perplexity" in metrics:
                figures.word_perplexity(corpus, result, found)
            if "proof" in metrics:
                figures.proof(model, documents, result, found)
            if "compressors" in metrics:
                figures.compressors(documents, result, found)
            if "lengths" in metrics:
                figures.lengths(settings, model, documents, trained["context_length"], found)
            if "utf8" in metrics:
                figures.utf8(settings, model, found)
            if "heatmap" in metrics:
                figures.show(settings, model, first_documents(corpus, settings.heatmap_bytes), result, found)
            print(json.dumps(found.values) if settings.json else "\n".join(found.lines))


def _corpus(settings: EvalSettings, trained: dict[str, Any]) -> ByteCorpus:
    from mambabyte.data import prepare

    data = settings.data or DataSettings.from_settings(trained["data"], "data")
    source = data.build_source(only_ours=settings.data is None)
    # the figure that ends a training run is over this many bytes
    limit = data.validation_bytes if settings.split == "validation" else None
    return prepare(source, settings.split, data.folder, limit)


def _metric(flag: str, metric: Metric, help: str) -> Flag:
    return Flag(flag, help, "metrics", [metric])


COMMAND = Command(
    "measure a model: mambabyte eval --bpb --ckpt runs/quickstart",
    EvalSettings,
    run,
    flags=(
        CKPT,
        _metric("--bpb", "bpb", "measure bits per byte"),
        _metric("--word-perplexity", "word_perplexity", "and the perplexity of words that follows from it"),
        _metric("--compressors", "compressors", "and what gzip, bzip2, xz, zstd and brotli need"),
        _metric("--noise", "noise", "and what six kinds of noise in the text cost"),
        _metric(
            "--lengths",
            "lengths",
            "and the figure by position and by length of context",
        ),
        _metric("--utf8", "utf8", "and the share of generated samples that are valid UTF-8"),
        _metric("--prove", "proof", "and compress the data with the model, and decompress it again"),
        Flag(
            *("--show", "and colour the first N bytes by their bits", "metrics", ["heatmap"]),
            metavar="N",
            argument="heatmap_bytes",
        ),
        JSON,
    ),
)
