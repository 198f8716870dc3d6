"""mambabyte eval: measures a checkpoint on the data it was trained on, or on any other."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from mambabyte.commands import CKPT, DATA, JSON, Command, Flag, Words
from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import setting, shown
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError
from mambabyte.runtime.system_errors import cannot_write
from mambabyte.runtime.valid_json import valid_json

if TYPE_CHECKING:
    import torch

    from mambabyte.checkpoints import Checkpoint
    from mambabyte.data import ByteCorpus
    from mambabyte.evaluation.published import PublishedModel
    from mambabyte.runtime.precision import PrecisionName

Metric = Literal["bpb", "word_perplexity", "compressors", "noise", "lengths", "utf8", "proof", "heatmap"]


@dataclass(kw_only=True)
class EvalSettings(CommandSettings):
    """conf/eval.yaml"""

    yaml: ClassVar[str] = "eval"
    ckpt: Path
    split: Literal["train", "validation", "test"] | None
    protocol: Literal["disjoint", "sliding", "stateful"]
    context_length: int | None = setting(at_least=1, at_most=2**30)
    stride: int | None = setting(at_least=1, at_most=2**30)
    batch_size: int = setting(at_least=1, at_most=2**20)
    precision: Literal["auto", "fp32", "bf16"]
    max_bytes: int | None = setting(at_least=1, at_most=2**62)
    device: str
    json: bool
    metrics: list[Metric]
    heatmap_bytes: int = setting(at_least=0, at_most=2**62)
    furthest: int | None = setting(at_least=1, at_most=2**40)
    samples: int = setting(at_least=1, at_most=10**6)
    sample_bytes: int = setting(at_least=1, at_most=10**6)
    out: Path | None
    save_every: float = setting(at_least=0)
    data: DataSettings | None = None

    def __post_init__(self) -> None:
        known = get_args(Metric)
        if not self.metrics or not set(self.metrics) <= set(known):
            raise UserError(f"metrics must be chosen from {', '.join(known)}, not {shown(self.metrics)}")
        if "proof" in self.metrics and self.protocol == "sliding":
            raise UserError(
                "--prove needs protocol=disjoint or stateful: a decoder cannot know what a sliding window "
                "has read ahead"
            )
        if "proof" in self.metrics and self.precision != "fp32":
            raise UserError("--prove needs precision=fp32, because the coder works in fp32")


def run(settings: EvalSettings) -> None:
    """Print the figures on stdout, as sentences or as one JSON object; progress goes to stderr.

    Under torchrun all ranks share the work, and the first prints.

    Raises:
        UserError: unreadable checkpoint, data or device that is not there.
    """
    from mambabyte import checkpoints
    from mambabyte.coding import prove
    from mambabyte.evaluation import BitsPerByte, Protocol, SavedProgress, evaluate
    from mambabyte.evaluation.bits_per_byte import by_part, first_documents
    from mambabyte.evaluation.studies import Study
    from mambabyte.evaluation.studies.chunk_sizes import chunk_study
    from mambabyte.evaluation.studies.compressors import compressor_study
    from mambabyte.evaluation.studies.context_curves import context_curve_study
    from mambabyte.evaluation.studies.heatmap import heatmap_study
    from mambabyte.evaluation.studies.noise import noise_study
    from mambabyte.evaluation.studies.utf8_validity import utf8_study
    from mambabyte.evaluation.studies.word_perplexity import word_perplexity_study
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.process_group import process_group
    from mambabyte.runtime.progress import progress_bar
    from mambabyte.runtime.terminal import print_coloured
    from mambabyte.runtime.units import counted

    metrics = settings.metrics
    with process_group(choose_device(settings.device)) as (device, rank):
        checkpoint = checkpoints.read(settings.ckpt)
        model, training_length = checkpoint.build_model(), _training_length(checkpoint, settings)
        # A checkpoint may come from a stranger, so the data that it names must be of our own classes.
        data = settings.data or _data_of(checkpoint)
        if data.is_task:
            _check_task(settings)
            _answer(settings, checkpoint, data, training_length, device, rank)
            return
        if settings.furthest is not None:
            raise UserError(
                "furthest= is how long a task's sequences get, and this data is none: leave it out"
            )
        published = _published(checkpoint)
        of_paper = published if settings.data is None else None
        split = settings.split or ("test" if of_paper else "validation")
        if settings.data and split == "validation":
            data = data.measured_whole()
        if of_paper and rank == 0:
            print(f"mambabyte: {_of_paper(checkpoint, of_paper, settings, split)}", file=sys.stderr)
        corpus = data.prepare(split, only_ours=settings.data is None)
        context_length = settings.context_length or training_length
        protocol = Protocol(
            *(settings.protocol, context_length, settings.stride, settings.batch_size),
            _precision(settings.precision, device, rank),
        )
        folder = settings.out or _folder_beside(checkpoint)
        if rank == 0 and {"lengths", "heatmap"} & set(metrics):
            _make(folder)
        saved = SavedProgress(folder, settings.save_every) if settings.out or _writable(folder) else None

        def measure(corpus: ByteCorpus, label: str, max_bytes: int | None = None) -> BitsPerByte:
            progress = progress_bar(label) if rank == 0 else None
            return evaluate(model, corpus, protocol, device, max_bytes, progress, saved, all_ranks=True)

        result = measure(corpus, settings.protocol, settings.max_bytes)
        found: dict[str, Study] = {}
        if "noise" in metrics:
            found["noise"] = noise_study(corpus, result, measure, settings.max_bytes)
        if rank != 0:
            return
        documents = first_documents(corpus, settings.max_bytes)
        if (chunks := chunk_study(model, documents, protocol)) is not None:
            found["chunks"] = chunks
        if "word_perplexity" in metrics:
            found["word_perplexity"] = word_perplexity_study(result.nats / result.bytes, corpus)
        if "proof" in metrics:
            window = None if settings.protocol == "stateful" else context_length
            proof = prove(model, documents, result.bits_per_byte, window, progress_bar)
            found["proof"] = Study(proof.to_dict(), [f"proof: {proof}"])
        if "compressors" in metrics:
            found["compressors"] = compressor_study(documents, result.bits_per_byte)
        if "lengths" in metrics:
            plot = folder / "lengths.png"
            found["lengths"] = context_curve_study(
                model, documents, training_length, protocol, split, plot, progress_bar
            )
        if "utf8" in metrics:
            found["utf8"] = utf8_study(model, settings.samples, settings.sample_bytes)
        if "heatmap" in metrics and settings.heatmap_bytes:
            shown = first_documents(corpus, settings.heatmap_bytes)
            found["shown"] = heatmap_study(model, shown, protocol, split, folder / "bits.html")
        if settings.json:
            where = {"checkpoint": checkpoint.name, "split": split}
            studies = {name: study.values for name, study in found.items()}
            parts = {name: asdict(part) for name, part in by_part(result, corpus).items()}
            print(valid_json({**result.to_dict(), "parts": parts, **where, **studies}))
        else:
            whole = settings.data is not None and data is not settings.data
            print(f"{'all of it' if whole else split}: {result}")
            for name, part in by_part(result, corpus).items():
                print(f"  {name}: {part.bits_per_byte:.4f} bits per byte, {counted(part.bytes, 'byte')}")
            for study in found.values():
                for line in study.lines:
                    (print_coloured if study.coloured else print)(line)
        for study in found.values():
            if study.fault is not None:
                raise UserError(study.fault)
        if settings.out is None:
            with suppress(OSError):  # it holds figures, or the progress of another evaluation
                folder.rmdir()


def _check_task(settings: EvalSettings) -> None:
    """Raise UserError about settings that mean nothing for a task, of which only answers are scored."""
    if others := sorted(set(settings.metrics) - {"bpb", "lengths"}):
        raise UserError(
            "this data is a task, of which only answers are scored: its metrics are bpb and lengths, and "
            f"not {', '.join(others)}"
        )
    if settings.protocol != "disjoint":
        raise UserError(
            f"this data is a task, whose sequences are each read from a fresh state: leave out protocol="
            f"{settings.protocol}"
        )
    if settings.stride is not None:
        raise UserError("this data is a task, whose sequences do not overlap: leave out stride=")
    if settings.furthest is not None and "lengths" not in settings.metrics:
        raise UserError("furthest= belongs to the metric lengths: add --lengths, or leave it out")


def _answer(
    settings: EvalSettings,
    checkpoint: Checkpoint,
    data: DataSettings,
    training_length: int,
    device: torch.device,
    rank: int,
) -> None:
    """Print a model's accuracy on a task, and with the metric lengths on shorter and longer sequences."""
    from mambabyte.evaluation.studies.accuracy_by_length import accuracy_by_length_study
    from mambabyte.evaluation.task_accuracy import CHUNK_LENGTH, evaluate_task
    from mambabyte.runtime.progress import progress_bar

    model, batch_size = checkpoint.build_model(), settings.batch_size
    length = settings.context_length or training_length
    precision = _precision(settings.precision, device, rank)
    split = settings.split or "validation"
    sequences = data.task_sequences(length, split, settings.max_bytes)
    progress = progress_bar("answers") if rank == 0 else None
    chunk_length = max(CHUNK_LENGTH, training_length)
    result = evaluate_task(
        model, sequences, batch_size, chunk_length, precision, device, progress, all_ranks=True
    )
    if rank != 0:
        return
    study = None
    if "lengths" in settings.metrics:
        folder = settings.out or _folder_beside(checkpoint)
        _make(folder)
        study = accuracy_by_length_study(
            *(model, sequences, training_length, settings.furthest, batch_size, precision),
            *(folder / "lengths.png", progress_bar),
        )
    if settings.json:
        found = {"checkpoint": checkpoint.name, "split": split}
        print(valid_json({**result.to_dict(), **found, **({"lengths": study.values} if study else {})}))
    else:
        print("\n".join([f"{split}: {result}", *(study.lines if study else [])]))
    if study and study.fault is not None:
        raise UserError(study.fault)


def _precision(asked: Literal["auto", "fp32", "bf16"], device: torch.device, rank: int) -> PrecisionName:
    """For ``auto``, the faster precision on rank 0's device, so that all ranks compute alike."""
    from mambabyte.runtime.precision import fastest_precision, slowness_of_bf16
    from mambabyte.runtime.process_group import gather_objects

    said = chosen = None
    if asked == "auto" and rank == 0:
        fastest = fastest_precision(device)
        chosen, said = fastest.name, f"precision={fastest.name} ({fastest.reason})"
    elif asked == "bf16" and rank == 0 and (slow := slowness_of_bf16(device)):
        said = f"{slow}: precision=auto takes the faster"
    if said:
        print(f"mambabyte: {said}", file=sys.stderr)
    return gather_objects(chosen)[0] if asked == "auto" else asked


def _published(checkpoint: Checkpoint) -> PublishedModel | None:
    """What the paper says about a model of its authors' that does not say it itself; None of another."""
    from mambabyte.evaluation.published import PUBLISHED

    foreign = checkpoint.content["mambabyte"].get("config") is None
    return PUBLISHED.get(checkpoint.hub.name) if foreign and checkpoint.hub is not None else None


def _of_paper(checkpoint: Checkpoint, published: PublishedModel, settings: EvalSettings, split: str) -> str:
    """What is measured where nothing else was asked for, and what to compare it with."""
    length = settings.context_length or published.context_length
    said = f"'{checkpoint.name}' is one of the paper's models: measuring data={published.data} split={split}"
    said += f" context_length={length}"
    if split == "test" and length == published.context_length and published.figure is not None:
        said += f"; the paper reports {published.figure}"
    return said


def _training_length(checkpoint: Checkpoint, settings: EvalSettings) -> int:
    """The context of training; for a model that does not say it, the paper's or the one asked for."""
    published = _published(checkpoint)
    if published is not None:
        return published.context_length
    try:
        return checkpoint.context_length
    except UserError as fault:
        if settings.context_length is None:
            wanted = "context_length=" if settings.data else "context_length= and data="
            raise UserError(f"{fault}; set {wanted}") from fault
        return settings.context_length


def _data_of(checkpoint: Checkpoint) -> DataSettings:
    """The data it was trained on. An export does not say where on its machine that lay."""
    published = _published(checkpoint)
    if published is not None and published.data is not None:
        composed = EvalSettings.compose(f"ckpt={checkpoint.name}", f"data={published.data}").data
        assert composed is not None
        return composed
    try:
        data = DataSettings.from_settings(checkpoint.config.get("data"), "data")
    except UserError as fault:
        if checkpoint.content["mambabyte"].get("config") is not None:
            raise
        raise UserError(
            f"'{checkpoint.name}' does not say on which data it was trained; set data= to what to measure"
        ) from fault
    try:
        data.build_source(only_ours=True)
    except UserError as fault:
        raise UserError(
            f"the data that '{checkpoint.name}' was trained on cannot be opened here ({fault}); "
            "name some, as in data=files data.path=FOLDER"
        ) from fault
    return data


def _folder_beside(checkpoint: Checkpoint) -> Path:
    """``evaluation`` in the checkpoint's run, or a folder beside a checkpoint of no run; for a model of the
    hub, one here, named after it."""
    if checkpoint.hub is not None:
        return Path(f"{checkpoint.hub.name.replace('/', '--')}.evaluation")
    path = checkpoint.path
    if path.parent.name == "checkpoints":
        return path.parent.parent / "evaluation"
    return path.with_name(f"{path.name}.evaluation")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, "out=") from error


def _writable(folder: Path) -> bool:
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return os.access(above, os.W_OK)


def _metric(flag: str, metric: Metric, help: str) -> Flag:
    return Flag(flag, help, "metrics", [metric])


COMMAND = Command(
    "measure a model: mambabyte eval --bpb --ckpt runs/quickstart",
    EvalSettings,
    run,
    flags=(
        CKPT,
        DATA,
        _metric("--bpb", "bpb", "measure bits per byte"),
        _metric("--word-perplexity", "word_perplexity", "and the perplexity of words that follows from it"),
        _metric("--compressors", "compressors", "and what gzip, bzip2, xz, zstd and brotli need"),
        _metric("--noise", "noise", "and what six kinds of noise in the text cost"),
        _metric("--lengths", "lengths", "and the figure by position and by length of context"),
        _metric("--utf8", "utf8", "and the share of generated samples that are valid UTF-8"),
        _metric("--prove", "proof", "and compress the data with the model, and decompress it again"),
        Flag(
            *("--show", "and colour the first N bytes by their bits", "metrics", ["heatmap"]),
            metavar="N",
            argument="heatmap_bytes",
        ),
        JSON,
    ),
    words=Words("data.path", "FILE", "the file to measure, instead of the data of training", "data=files"),
)
