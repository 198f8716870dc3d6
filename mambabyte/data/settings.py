"""The `data` section of a configuration: a source, and how windows are cut from its documents."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mambabyte.config.composition import instantiate
from mambabyte.config.settings import Settings, fill, setting, suggestion, without_target
from mambabyte.errors import UserError

if TYPE_CHECKING:
    from mambabyte.data.corpus.corpus import MappedCorpus
    from mambabyte.data.sources.documents import DocumentSource
    from mambabyte.data.tasks import TaskSequences

_SOURCES = ("Files", "HeldOut", "HuggingFace", "Mixture", "PG19", "PG19Texts", "StandardLibrary")
# The short names of conf/data that hold text; the source has their types, but importing it takes a second.
_TEXTS = ("path", "name", "revision", "configuration", "text_column", "language", "texts", "lists")
_TEXTS_OF_SOURCE = (*_TEXTS, "split_names.train", "split_names.validation", "split_names.test")
_TASKS = {f"mambabyte.data.{name}Task" for name in ("Copying", "InductionHeads", "SelectiveCopying")}
_OURS = {f"mambabyte.data.{name}Source" for name in _SOURCES} | _TASKS


@dataclass
class DataSettings(Settings):
    """The keys of conf/data, which describes them, that the program reads.

    Attributes:
        source: the description of a source: its class under ``_target_``, and that class's settings.
    """

    section: ClassVar[str] = "data"
    text_keys: ClassVar[tuple[str, ...]] = (*_TEXTS, *(f"source.{key}" for key in _TEXTS_OF_SOURCE))
    source: dict[str, Any]
    windows: Literal["random_per_document", "contiguous", "packed"] = "random_per_document"
    streaming: bool = False
    folder: Path = Path("data/prepared")
    workers: int = setting(default=0, at_least=0, at_most=1000)
    validation_bytes: int | None = setting(default=None, at_least=1, at_most=2**62)
    block_windows: int = setting(default=1024, at_least=1, at_most=10**7)

    def __post_init__(self) -> None:
        if self.is_mixture and self.streaming:
            raise UserError(
                "data.streaming=true, perhaps an experiment's, and a mixture is prepared on the disk before "
                "it is trained on: set data.streaming=false, or stream one of its parts alone"
            )
        if self.is_mixture and self.validation_bytes is not None:
            raise UserError(
                f"data.validation_bytes={self.validation_bytes}, perhaps an experiment's, would be the first "
                "bytes of a mixture's first part: set it to null, and data.parts.NAME.validation_bytes for "
                "each part that should have fewer"
            )
        if self.is_task and self.windows != "random_per_document":
            raise UserError(
                f"data.windows={self.windows} cuts documents, and this data is a task, whose sequences are "
                "windows already: leave it out"
            )
        if self.is_task and self.validation_bytes is None:
            raise UserError(
                "data.validation_bytes must be a number, since the sequences of a task never end: so many "
                "bytes are made to validate on"
            )

    @classmethod
    def from_settings(cls, values: Any, where: str) -> DataSettings:
        """From the plain ``data`` section of a configuration, perhaps one that an earlier version saved.

        Other keys are ignored: in conf/data they are short names for settings of the source, which has them.
        """
        if not isinstance(values, Mapping):
            return fill(cls, values, where)
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in values.items() if key in known}
        source = values.get("source")
        if _is_ours(source) and isinstance(source.get("streaming"), bool):  # version 0.1: not download
            values["source"] = {key: value for key, value in source.items() if key != "streaming"}
            values["source"]["download"] = not source["streaming"]
        return fill(cls, values, where)

    def build_source(self, only_ours: bool = False) -> DocumentSource:
        return source_from_config(self.source, only_ours)

    def prepare(self, split: str, max_bytes: int | None = None, only_ours: bool = False) -> MappedCorpus:
        """The corpus of one split, of at most ``max_bytes``; validation of at most ``validation_bytes``.

        Raises:
            UserError: the data cannot be read or written, or has no such split.
        """
        from mambabyte.data.corpus.corpus import prepare

        limits = [max_bytes, self.validation_bytes if split == "validation" else None]
        limit = min((size for size in limits if size is not None), default=None)
        source = self.build_source(only_ours)
        if self.is_task:
            source.documents(split)  # says that there are none
        return prepare(source, split, self.folder, limit)

    def task_sequences(
        self, context_length: int, split: str = "validation", max_bytes: int | None = None
    ) -> TaskSequences:
        """The sequences that a task is measured on: as many as there are in the first ``max_bytes`` or
        ``validation_bytes``, the smaller of the two, and at least one.

        Raises:
            UserError: the sequences are too short for the task, or the split is that of training.
        """
        from mambabyte.data.tasks import Task, TaskSequences

        task = self.build_source(only_ours=True)
        assert isinstance(task, Task) and self.validation_bytes is not None
        size = min(self.validation_bytes, max_bytes or self.validation_bytes)
        return TaskSequences(task, context_length, max(1, size // context_length), split, max_bytes)

    def check_path(self) -> None:
        """Raise the source's UserError if it is ours and its path leads nowhere. Cheap; imports no torch."""
        if self.is_mixture:
            self.build_source().check_paths()  # type: ignore[attr-defined]
        source = self.with_absolute_paths().source
        path = source.get("path") if _is_ours(source) else None
        paths = path if isinstance(path, list) else [path]
        if any(isinstance(each, str) and "://" not in each and not _leads_somewhere(each) for each in paths):
            self.build_source().identity()

    def with_absolute_paths(self) -> DataSettings:
        """A copy that means the same from any working directory and in any command, unless the source is not
        ours: then the meaning of its settings is unknown."""
        from mambabyte.data.sources.files import HELD_OUT

        def absolute(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [absolute(item) for item in value]
            if not isinstance(value, (str, Path)) or not str(value) or "://" in str(value):
                return value
            return os.path.abspath(os.path.expanduser(value))

        if not _is_ours(self.source):
            return self

        def with_paths(values: dict[str, Any]) -> dict[str, Any]:
            return {**values, **{key: absolute(values[key]) for key in ("path", "texts") if key in values}}

        source, parts = with_paths(self.source), self.source.get("parts")
        if self.is_mixture and isinstance(parts, dict):
            source["parts"] = {
                k: _written_out(with_paths(p)) if isinstance(p, dict) else p for k, p in parts.items()
            }
        share = {"validation_fraction": HELD_OUT} if self._is_undivided else {}
        return replace(self, source={**source, **share})

    def measured_whole(self) -> DataSettings:
        """A copy for a measurement: the validation split of files, alone or in a mixture, is all of them,
        unless ``validation_fraction`` says otherwise."""
        if self.is_mixture and isinstance(self.source.get("parts"), dict):
            parts = {name: _measured_whole(part) for name, part in self.source["parts"].items()}
            return replace(self, source={**self.source, "parts": parts})
        return replace(self, source={**self.source, "validation_fraction": 1}) if self._is_undivided else self

    @property
    def is_mixture(self) -> bool:
        return self.source.get("_target_") == "mambabyte.data.MixtureSource"

    @property
    def is_task(self) -> bool:
        """Whether this is a synthetic task (data/tasks.py), which has no documents."""
        target = self.source.get("_target_")
        return isinstance(target, str) and target in _TASKS

    @property
    def _is_undivided(self) -> bool:
        """Whether these are files of which no share to hold out is set."""
        is_files = self.source.get("_target_") == "mambabyte.data.FilesSource"
        return is_files and self.source.get("validation_fraction") is None


def source_from_config(description: Mapping[str, Any], only_ours: bool = False) -> DocumentSource:
    """The source that a configuration's ``data.source`` describes.

    Args:
        only_ours: refuse other packages' sources. For a configuration that came with somebody else's
            checkpoint, since ``_target_`` can name any callable.
    """
    target = description.get("_target_") if isinstance(description, Mapping) else None
    if isinstance(target, str) and target in _OURS:
        schema = getattr(import_module("mambabyte.data"), target.rpartition(".")[2])
        values = without_target(description)
        known = {field.name for field in fields(schema)}
        for key in values.keys() - known:
            raise UserError(f"there is no setting data.source.{key}{suggestion(key, known)}")
        return fill(schema, values)
    if only_ours:
        raise UserError(
            f"this config's data source {target} is not one of mambabyte's own and was not run; choose one "
            "with data="
        )
    return instantiate(description, "data.source")


def _leads_somewhere(path: str) -> bool:
    return os.path.exists(path) or any(glob.iglob(path, recursive=True))


def _written_out(part: dict[str, Any]) -> dict[str, Any]:
    """A mixture's part with its weight, which is 1 where none is written."""
    weight = part.get("weight", 1)
    return {**part, "weight": float(weight) if isinstance(weight, int) else weight}


def _measured_whole(part: Any) -> Any:
    files = isinstance(part, dict) and part.get("data") == "files" and part.get("validation_fraction") is None
    return {**part, "validation_fraction": 1} if files else part


def _is_ours(source: Any) -> bool:
    target = source.get("_target_") if isinstance(source, Mapping) else None
    return isinstance(target, str) and target in _OURS
