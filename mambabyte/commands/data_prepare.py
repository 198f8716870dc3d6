"""mambabyte data prepare: writes a corpus as training will read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mambabyte.commands import DATA, JSON, Command
from mambabyte.config.composition import CommandSettings
from mambabyte.data.settings import DataSettings
from mambabyte.runtime.valid_json import valid_json


@dataclass
class DataPrepareSettings(CommandSettings):
    """conf/data_prepare.yaml"""

    yaml: ClassVar[str] = "data_prepare"
    split: Literal["train", "validation", "test", "all"]
    json: bool
    data: DataSettings


def run(settings: DataPrepareSettings) -> None:
    """Print what each prepared split holds, a line each or one JSON object; progress goes to stderr.

    Raises:
        UserError: the data cannot be read, has no such split, or the folder cannot be written.
    """
    from mambabyte.data.corpus.corpus import MappedCorpus
    from mambabyte.data.sources.documents import SPLITS
    from mambabyte.runtime.units import counted

    source = settings.data.build_source()
    splits = getattr(source, "splits", SPLITS) if settings.split == "all" else (settings.split,)
    found: dict[str, MappedCorpus] = {}
    for split in splits:
        found[split] = corpus = settings.data.prepare(split)
        if not settings.json:
            documents = counted(corpus.num_documents, "document")
            print(f"{split}: {documents}, {counted(corpus.num_bytes, 'byte')}, in {corpus.folder}")
    if settings.json:
        print(valid_json({split: {"folder": str(c.folder), **c.meta} for split, c in found.items()}))


COMMAND = Command(
    "write a corpus as training reads it: mambabyte data prepare data=pg19",
    DataPrepareSettings,
    run,
    flags=(DATA, JSON),
)
