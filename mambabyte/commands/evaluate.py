"""mambabyte eval: measures a checkpoint on the data it was trained on, or on any other."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mambabyte.errors import UserError

_METRICS = ("bpb",)


def run(cfg: DictConfig) -> None:
    """Print the figure on stdout, as a sentence or as one JSON object; progress goes to stderr.

    Raises:
        UserError: unknown metric, unreadable checkpoint, data or device that is not there.
    """
    unknown = [metric for metric in cfg.metrics if metric not in _METRICS]
    if unknown or not cfg.metrics:
        raise UserError(f"metrics must be chosen from {', '.join(_METRICS)}, not {list(cfg.metrics)}")
    from mambabyte import checkpoints
    from mambabyte.commands.devices import choose_device
    from mambabyte.evaluation import evaluate
    from mambabyte.evaluation.progress import progress_bar

    device = choose_device(cfg.device)
    trained = checkpoints.run_config(cfg.ckpt)
    result = evaluate(
        checkpoints.load_model(cfg.ckpt),
        _corpus(cfg, trained),
        protocol=cfg.protocol,
        context_length=trained["context_length"] if cfg.context_length is None else cfg.context_length,
        batch_size=cfg.batch_size,
        device=device,
        precision=cfg.precision,
        max_bytes=cfg.max_bytes,
        progress=progress_bar(cfg.protocol),
    )
    if cfg.json:
        where = {"checkpoint": str(checkpoints.resolve(cfg.ckpt)), "split": cfg.split}
        print(json.dumps({**result.to_dict(), **where}))
    else:
        print(f"{cfg.split}: {result}")


def _corpus(cfg: DictConfig, trained: dict[str, Any]) -> Any:
    from mambabyte.data import prepare, source_from_config

    own = cfg.get("data") is None
    data: Any = trained["data"] if own else OmegaConf.to_container(cfg.data, resolve=True)
    source = source_from_config(data["source"], only_ours=own)
    # the figure that ends a training run is over this many bytes
    limit = data["validation_bytes"] if cfg.split == "validation" else None
    return prepare(source, cfg.split, Path(data["folder"]), limit)
