"""What a source of text is: named documents of raw bytes, in train, validation and test splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mambabyte.errors import UserError

SPLITS = ("train", "validation", "test")
_SOURCES = ("Files", "HeldOut", "HuggingFace", "PG19", "PG19Texts", "StandardLibrary")
_OURS = {f"mambabyte.data.{name}Source" for name in _SOURCES}


@dataclass(frozen=True)
class Document:
    """One text, book, file or row.

    name: stable identity inside its corpus: a relative posix path, or "<file>:<row>".
    data: the document's bytes, never decoded.
    """

    name: str
    data: bytes

    def chunks(self) -> Iterator[bytes]:
        """The bytes in pieces, none of them empty; a document that is never whole in memory has many."""
        if self.data:
            yield self.data


class DocumentSource(Protocol):
    """Where documents come from. A class of your own works too: name it in `data.source._target_`."""

    def documents(self, split: str) -> Iterator[Document]:
        """Yield the documents of "train", "validation" or "test", always in the same order.

        Raises UserError when the source does not offer the split or cannot be read.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Plain JSON that names the bytes: two sources with equal identities yield equal documents."""
        ...

    # A source may also have, and `prepare` uses where it does:
    #   splits: the splits it offers, of SPLITS.
    #   documents_after(split, count): documents(split) without the first `count`, which it need not read.
    #   expected_bytes(split) -> int | None: about how many bytes the split holds, for the time left.


def held_out(key: str | bytes, fraction: float) -> bool:
    """Whether a document belongs to the validation split: the hash of its name, or of its bytes, falls below
    the fraction.

    Adding or removing other documents never moves a document from one split to the other.
    """
    content = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key
    digest = hashlib.sha256(content).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def check_fraction(fraction: Any) -> None:
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise UserError(f"data.validation_fraction must be a number from 0 to 1, not {fraction!r}")


def with_absolute_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    """A config's `data` section whose own files are named from the root, to be found from any folder."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        if not isinstance(value, str) or not value or "://" in value:
            return value
        return os.path.abspath(os.path.expanduser(value))

    def with_paths(section: Mapping[str, Any]) -> dict[str, Any]:
        return {key: absolute(value) if key in ("path", "texts") else value for key, value in section.items()}

    source = data.get("source")
    if not isinstance(source, Mapping) or source.get("_target_") not in _OURS:
        return dict(data)  # what `path` means to somebody else's source is not known
    return {**with_paths(data), "source": with_paths(source)}


def source_from_config(section: Mapping[str, Any], only_ours: bool = False) -> DocumentSource:
    """Build the source that a config's `data.source` section names by its `_target_`.

    only_ours: accept nothing but this package's own sources. Set it for a config that came with somebody
    else's checkpoint, since `_target_` can name any callable.
    Raises UserError for a missing or unknown `_target_`, and for unknown or ill-typed fields.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf.errors import OmegaConfBaseException

    target = section.get("_target_") if isinstance(section, Mapping) else None
    if not isinstance(target, str):
        raise UserError("data.source needs a _target_, such as mambabyte.data.FilesSource")
    if only_ours and target not in _OURS:
        raise UserError(
            f"this config's data source {target} is not one of mambabyte's own and was not run; choose one "
            "with data="
        )
    try:
        return instantiate(section, _convert_="all", _recursive_=not only_ours)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"data.source cannot be built from {target}: {reason}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"data.source is incomplete: {str(error).splitlines()[0]}") from error
