"""mambabyte data prepare: writes a corpus as training will read it."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def run(cfg: DictConfig) -> None:
    """Print what each prepared split holds, a line each or one JSON object; progress goes to stderr.

    Raises:
        UserError: the data cannot be read, has no such split, or the folder cannot be written.
    """
    from mambabyte.data import prepare, source_from_config
    from mambabyte.data.corpus.corpus import MappedCorpus
    from mambabyte.data.sources.documents import SPLITS
    from mambabyte.runtime.units import counted

    data: Any = OmegaConf.to_container(cfg.data, resolve=True)
    source = source_from_config(data["source"])
    splits = getattr(source, "splits", SPLITS) if cfg.split == "all" else (cfg.split,)
    found: dict[str, MappedCorpus] = {}
    for split in splits:
        # as training does: a run validates on so many bytes
        limit = data["validation_bytes"] if split == "validation" else None
        found[split] = corpus = prepare(source, split, Path(data["folder"]), limit)
        if not cfg.json:
            documents = counted(corpus.num_documents, "document")
            print(f"{split}: {documents}, {counted(corpus.num_bytes, 'byte')}, in {corpus.folder}")
    if cfg.json:
        print(json.dumps({split: {"folder": str(c.folder), **c.meta} for split, c in found.items()}))
