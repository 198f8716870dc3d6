"""mambabyte data prepare: writes a corpus as training will read it."""

import json

from omegaconf import DictConfig, OmegaConf


def run(cfg: DictConfig) -> None:
    """Print what each prepared split holds, a line each or one JSON object; progress goes to stderr.

    Raises:
        UserError: the data cannot be read, has no such split, or the folder cannot be written.
    """
    from mambabyte.data import DataSettings, prepare
    from mambabyte.data.corpus.corpus import MappedCorpus
    from mambabyte.data.sources.documents import SPLITS
    from mambabyte.runtime.progress import counted

    data = DataSettings.from_settings(OmegaConf.to_container(cfg.data, resolve=True), "data")
    source = data.build_source()
    splits = getattr(source, "splits", SPLITS) if cfg.split == "all" else (cfg.split,)
    found: dict[str, MappedCorpus] = {}
    for split in splits:
        # as training does: a run validates on so many bytes
        limit = data.validation_bytes if split == "validation" else None
        found[split] = corpus = prepare(source, split, data.folder, limit)
        if not cfg.json:
            documents = counted(corpus.num_documents, "document")
            print(f"{split}: {documents}, {counted(corpus.num_bytes, 'byte')}, in {corpus.folder}")
    if cfg.json:
        print(json.dumps({split: {"folder": str(c.folder), **c.meta} for split, c in found.items()}))
