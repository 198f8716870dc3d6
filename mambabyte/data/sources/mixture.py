"""Several sources as one: their documents end to end, each known by the name of its part."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from mambabyte.config.composition import CommandSettings, config_dir
from mambabyte.config.settings import Settings, fill, setting, shown, suggestion
from mambabyte.data.settings import DataSettings
from mambabyte.data.sources.documents import SPLITS, Document, DocumentSource, identity_of
from mambabyte.errors import UserError

if TYPE_CHECKING:
    from mambabyte.data.corpus.corpus import ByteCorpus

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_OF_THE_MIXTURE = ("windows", "streaming", "folder", "workers", "block_windows")  # of all parts alike

BLOCK = 1024  # consecutive training windows, in which each part has a fixed number


@dataclass
class _Composed(CommandSettings):
    """A part's section, composed as that of any command is."""

    yaml: ClassVar[str] = "data_prepare"
    split: str
    json: bool
    data: DataSettings


@dataclass
class _Weight(Settings):
    weight: float = setting(default=1.0, above=0, at_most=10**9)


def _composed(values: Mapping[str, Any]) -> DataSettings:
    """The data section that a part describes, as ``data=<file> data.<key>=<value> ...`` would compose it."""
    from omegaconf import OmegaConf

    files = {path.stem for path in (config_dir() / "data").glob("*.yaml")} - {"mixture"}
    file = values.get("data")
    if not isinstance(file, str) or file not in files:
        raise UserError(f"data must be a file of conf/data, not {shown(file)}{suggestion(str(file), files)}")
    composed, choices = _Composed.compose_yaml([f"data={file}"])
    known = composed.data.keys() - set(_OF_THE_MIXTURE)
    for key, value in values.items():
        if key in _OF_THE_MIXTURE:
            raise UserError(f"{key} is of the whole mixture: set data.{key}")
        if key != "data" and key not in known:
            raise UserError(f"there is no setting {key}{suggestion(key, known | {'data', 'weight'})}")
        if key != "data":
            OmegaConf.update(composed.data, key, value)
    settings = _Composed.from_composed(composed, choices).data
    if settings.is_mixture:
        raise UserError(f"data={file} is a mixture itself: name its parts beside the others")
    if settings.is_task:
        raise UserError(f"data={file} is a task, which has no documents to mix: train on it alone")
    return settings


@contextmanager
def _named(part: str) -> Iterator[None]:
    """Say of which part a fault is."""
    try:
        yield
    except UserError as fault:
        raise UserError(f"data.parts.{part}: {fault}") from fault


@dataclass
class MixtureSource(Settings):
    """Sources side by side. Training draws its windows from each part by its weight; a measurement reads all
    documents of all parts, one part after the other.

    A document is named "<part>/<its name>".

    Attributes:
        parts: for each part, by a name of letters, digits, "-" and "_": ``data``, a file of conf/data;
            ``weight`` (1), its share of the training windows in proportion to the others'; and the settings
            that follow data.<file>, such as ``path``.

    Raises:
        UserError: no parts, or settings that a part cannot obey.
    """

    section: ClassVar[str] = "data"
    parts: dict[str, Any] | None

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError(
                "data.parts must say what to mix, as in "
                "'data.parts={old: {data: stdlib}, new: {data: files, path: FOLDER, weight: 3}}'"
            )
        self._weights: dict[str, float] = {}
        self._settings: dict[str, DataSettings] = {}
        for name, values in sorted(self.parts.items(), key=lambda part: str(part[0])):  # as in any order
            if type(name) not in (str, int) or not _NAME.fullmatch(str(name)):
                raise UserError(
                    f"data.parts: a name must be of letters, digits, - and _, unlike {shown(name)}"
                )
            if str(name) in self._settings:
                raise UserError(f"data.parts names two parts {name}")
            if not isinstance(values, Mapping):
                raise UserError(f"data.parts.{name} must be a section of key: value, not {shown(values)}")
            if "data" not in values:
                known = ", ".join(str(other) for other in self.parts if other != name)
                raise UserError(
                    f"data.parts.{name} does not say which data it is: set data.parts.{name}.data"
                    + (f", or one of the other parts, which are {known}" if known else "")
                )
            weight = {key: value for key, value in values.items() if key == "weight"}
            others = {key: value for key, value in values.items() if key != "weight"}
            with _named(name):
                self._weights[str(name)] = fill(_Weight, weight, "").weight
                self._settings[str(name)] = _composed(others)
        windows_per_block(self.weights)

    @property
    def weights(self) -> dict[str, float]:
        """Each part's share of the training windows; their sum is 1."""
        total = sum(self._weights.values())
        return {name: weight / total for name, weight in self._weights.items()}

    def check_paths(self) -> None:
        """Raise a part's UserError if its path leads nowhere."""
        for name, settings in self._settings.items():
            with _named(name):
                settings.check_path()

    @cached_property
    def sources(self) -> dict[str, DocumentSource]:
        built = {}
        for name, settings in self._settings.items():
            with _named(name):
                built[name] = settings.build_source(only_ours=True)
        return built

    @property
    def splits(self) -> tuple[str, ...]:
        offered = [getattr(source, "splits", SPLITS) for source in self.sources.values()]
        return tuple(split for split in SPLITS if all(split in each for each in offered))

    def documents(self, split: str) -> Iterator[Document]:
        for name, source in self.sources.items():
            with _named(name):
                found = False
                for document in first_bytes(source.documents(split), self._limit(name, split)):
                    found = True
                    yield Renamed(f"{name}/{document.name}", document)
                if not found:
                    raise UserError(f"it has no {split} data; add some, or change its validation_fraction")

    def _limit(self, part: str, split: str) -> int | None:
        return self._settings[part].validation_bytes if split == "validation" else None

    def expected_bytes(self, split: str) -> int | None:
        total = 0
        for name, source in self.sources.items():
            size = source.expected_bytes(split) if hasattr(source, "expected_bytes") else None
            limit = self._limit(name, split)
            if size is None:
                return None
            total += size if limit is None else min(size, limit)
        return total

    def identity(self) -> dict[str, Any]:
        return self._identity({name: source.identity() for name, source in self.sources.items()})

    def identity_of(self, split: str) -> dict[str, Any]:
        return self._identity({name: identity_of(source, split) for name, source in self.sources.items()})

    def _identity(self, identities: dict[str, Any]) -> dict[str, Any]:
        # A list: the order of the parts is that of their documents, and JSON sorts the keys of an object.
        limits = [self._settings[name].validation_bytes for name in identities]
        return {
            "source": "MixtureSource",
            "parts": list(identities),
            "identities": list(identities.values()),
            "validation_bytes": limits,
        }


class Renamed(Document):
    """A document under another name."""

    def __init__(self, name: str, document: Document) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "document", document)

    document: Document

    @property
    def data(self) -> bytes:
        return self.document.data

    def chunks(self) -> Iterator[bytes]:
        return self.document.chunks()


def first_bytes(documents: Iterator[Document], limit: int | None) -> Iterator[Document]:
    """Documents until they hold ``limit`` bytes, the last one cut."""
    left = limit
    for document in documents:
        if left is None:
            yield document
            continue
        length = sum(map(len, document.chunks()))
        yield document if length <= left else Document(document.name, document.data[:left])
        left -= length
        if left <= 0:
            return


def parts_of(corpus: ByteCorpus) -> dict[str, tuple[int, int]]:
    """The documents [first, last) of each part of a prepared mixture; of another corpus, no parts."""
    identity = corpus.meta.get("identity", {})
    if identity.get("source") != "MixtureSource":
        return {}
    parts: Sequence[str] = identity["parts"]
    order = {name: number for number, name in enumerate(parts)}
    borders = [
        bisect_left(corpus.names, number, key=lambda name: order[name.partition("/")[0]])
        for number in range(len(parts) + 1)
    ]
    return {name: (borders[number], borders[number + 1]) for name, number in order.items()}


def windows_per_block(weights: Mapping[str, float]) -> dict[str, int]:
    """How many of every BLOCK windows each part has: by weight, the largest remainders rounded up.

    Raises:
        UserError: a weight is so small that it comes to less than one window.
    """
    for name, weight in weights.items():
        if weight * BLOCK < 1:
            raise UserError(
                f"data.parts.{name}.weight is {weight:.2g} of the sum of all weights, less than one window "
                f"in {BLOCK:,}: give it more, or leave the part out"
            )
    counts = {name: int(weight * BLOCK) for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: weights[name] * BLOCK - counts[name], reverse=True)
    for name in by_remainder[: BLOCK - sum(counts.values())]:
        counts[name] += 1
    return counts
