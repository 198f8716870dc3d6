"""mambabyte eval: measures a checkpoint on the data it was trained on, or on any other."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mambabyte.commands.eval_metrics import EVAL_METRICS
from mambabyte.errors import UserError


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
    from mambabyte.evaluation import SavedProgress, evaluate
    from mambabyte.evaluation.bits_per_byte import first_documents
    from mambabyte.evaluation.studies import presentation as figures
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.process_group import process_group
    from mambabyte.runtime.progress import progress_bar

    with process_group(choose_device(cfg.device)) as (device, rank):
        trained = checkpoints.run_config(cfg.ckpt)
        model = checkpoints.load_model(cfg.ckpt)
        corpus = _corpus(cfg, trained)
        how: dict[str, Any] = {
            "protocol": cfg.protocol,
            "context_length": trained["context_length"] if cfg.context_length is None else cfg.context_length,
            "batch_size": cfg.batch_size,
            "device": device,
            "precision": cfg.precision,
            "stride": cfg.stride,
            "all_ranks": True,
            "saved_progress": SavedProgress(Path(cfg.output_dir), cfg.save_every),
        }

        def measure(corpus: Any, label: str, max_bytes: int | None = None) -> Any:
            progress = progress_bar(label) if rank == 0 else None
            return evaluate(model, corpus, **how, max_bytes=max_bytes, progress=progress)

        result = measure(corpus, cfg.protocol, cfg.max_bytes)
        where = {"checkpoint": str(checkpoints.resolve(cfg.ckpt)), "split": cfg.split}
        found = figures.Found({**result.to_dict(), **where}, [f"{cfg.split}: {result}"])
        if "noise" in cfg.metrics:
            figures.noise(cfg, corpus, result, measure, found)
        if rank == 0:
            documents = first_documents(corpus, cfg.max_bytes)
            if "word_perplexity" in cfg.metrics:
                figures.word_perplexity(corpus, result, found)
            if cfg.prove:
                figures.proof(model, documents, result, found)
            if "compressors" in cfg.metrics:
                figures.compressors(documents, result, found)
            if "lengths" in cfg.metrics:
                figures.lengths(cfg, model, documents, trained["context_length"], found)
            if "utf8" in cfg.metrics:
                figures.utf8(cfg, model, found)
            if cfg.show:
                figures.show(cfg, model, first_documents(corpus, cfg.show), result, found)
            print(json.dumps(found.values) if cfg.json else "\n".join(found.lines))


def _corpus(cfg: DictConfig, trained: dict[str, Any]) -> Any:
    from mambabyte.data import prepare, source_from_config

    own = cfg.get("data") is None
    data: Any = trained["data"] if own else OmegaConf.to_container(cfg.data, resolve=True)
    source = source_from_config(data["source"], only_ours=own)
    # the figure that ends a training run is over this many bytes
    limit = data["validation_bytes"] if cfg.split == "validation" else None
    return prepare(source, cfg.split, Path(data["folder"]), limit)
