"""mambabyte eval: measures a checkpoint on the data it was trained on, or on any other."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from mambabyte.commands.eval_metrics import EVAL_METRICS
from mambabyte.errors import UserError

if TYPE_CHECKING:
    from mambabyte.data import ByteCorpus


def run(cfg: DictConfig) -> None:
    """Print the figures on stdout, as sentences or as one JSON object; progress goes to stderr.

    Under torchrun all ranks share the work, and the first prints.

    Raises:
        UserError: unknown metric, unreadable checkpoint, data or device that is not there.
    """
    unknown = [metric for metric in cfg.metrics if metric not in EVAL_METRICS]
    if unknown or not cfg.metrics:
        raise UserError(f"metrics must be chosen from {', '.join(EVAL_METRICS)}, not {list(cfg.metrics)}")
    if cfg.prove and cfg.protocol == "sliding":
        raise UserError(
            "prove=true needs protocol=disjoint or stateful: a decoder cannot know what a sliding window "
            "has read ahead"
        )
    if cfg.prove and cfg.precision != "fp32":
        raise UserError("prove=true needs precision=fp32, in which the coder computes")
    if cfg.show < 0:
        raise UserError(f"show must be 0 or more, not {cfg.show}")
    from mambabyte import checkpoints
    from mambabyte.coding import prove
    from mambabyte.evaluation import BitsPerByte, Protocol, SavedProgress, evaluate
    from mambabyte.evaluation.bits_per_byte import first_documents
    from mambabyte.evaluation.studies import Study
    from mambabyte.evaluation.studies.compressors import compressor_study
    from mambabyte.evaluation.studies.context_curves import context_curve_study
    from mambabyte.evaluation.studies.heatmap import heatmap_study
    from mambabyte.evaluation.studies.noise import noise_study
    from mambabyte.evaluation.studies.utf8_validity import utf8_study
    from mambabyte.evaluation.studies.word_perplexity import word_perplexity_study
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.process_group import process_group
    from mambabyte.runtime.progress import progress_bar

    with process_group(choose_device(cfg.device)) as (device, rank):
        trained = checkpoints.run_config(cfg.ckpt)
        model = checkpoints.load_model(cfg.ckpt)
        corpus = _corpus(cfg, trained)
        training_length = trained["context_length"]
        context_length = training_length if cfg.context_length is None else cfg.context_length
        protocol = Protocol(cfg.protocol, context_length, cfg.stride, cfg.batch_size, cfg.precision)
        saved = SavedProgress(Path(cfg.output_dir), cfg.save_every)

        def measure(corpus: "ByteCorpus", label: str, max_bytes: int | None = None) -> BitsPerByte:
            progress = progress_bar(label) if rank == 0 else None
            return evaluate(model, corpus, protocol, device, max_bytes, progress, saved, all_ranks=True)

        result = measure(corpus, cfg.protocol, cfg.max_bytes)
        found: dict[str, Study] = {}
        if "noise" in cfg.metrics:
            found["noise"] = noise_study(corpus, result, measure, cfg.max_bytes)
        if rank != 0:
            return
        documents, folder = first_documents(corpus, cfg.max_bytes), Path(cfg.output_dir)
        if "word_perplexity" in cfg.metrics:
            found["word_perplexity"] = word_perplexity_study(result.nats / result.bytes, corpus)
        if cfg.prove:
            window = None if cfg.protocol == "stateful" else context_length
            proof = prove(model, documents, result.bits_per_byte, window, progress_bar)
            found["proof"] = Study(proof.to_dict(), [f"proof: {proof}"])
        if "compressors" in cfg.metrics:
            found["compressors"] = compressor_study(documents, result.bits_per_byte)
        if "lengths" in cfg.metrics:
            plot = folder / "lengths.png"
            found["lengths"] = context_curve_study(
                model, documents, training_length, protocol, cfg.split, plot, progress_bar
            )
        if "utf8" in cfg.metrics:
            found["utf8"] = utf8_study(model, cfg.samples, cfg.sample_bytes)
        if cfg.show:
            shown = first_documents(corpus, cfg.show)
            found["shown"] = heatmap_study(model, shown, protocol, cfg.split, folder / "bits.html")
        if cfg.json:
            where = {"checkpoint": str(checkpoints.resolve(cfg.ckpt)), "split": cfg.split}
            studies = {name: study.values for name, study in found.items()}
            print(json.dumps({**result.to_dict(), **where, **studies}))
        else:
            lines = [line for study in found.values() for line in study.lines]
            print("\n".join([f"{cfg.split}: {result}", *lines]))


def _corpus(cfg: DictConfig, trained: dict[str, Any]) -> Any:
    from mambabyte.data import prepare, source_from_config

    own = cfg.get("data") is None
    data: Any = trained["data"] if own else OmegaConf.to_container(cfg.data, resolve=True)
    source = source_from_config(data["source"], only_ours=own)
    # the figure that ends a training run is over this many bytes
    limit = data["validation_bytes"] if cfg.split == "validation" else None
    return prepare(source, cfg.split, Path(data["folder"]), limit)
