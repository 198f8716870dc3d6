"""Documents, named and of raw bytes, and the sources that yield them in splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Document:
    """One text, book, file or row.

    Attributes:
        name: unique and stable within its corpus: a relative POSIX path, or "<file>:<row>".
        data: its bytes, never decoded.
    """

    name: str
    data: bytes

    def chunks(self) -> Iterator[bytes]:
        """The bytes in chunks, none of them empty: several where the document is not kept in memory."""
        if self.data:
            yield self.data


class DocumentSource(Protocol):
    """Yields documents. For a class of your own, name it in ``data.source._target_``."""

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of "train", "validation" or "test", always in the same order.

        Raises:
            UserError: there is no such split, or it cannot be read.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Plain JSON that determines the bytes: sources of equal identities yield equal documents."""
        ...

    # Optional, for `prepare`:
    #   splits: which of SPLITS there are.
    #   documents_after(split, count): documents(split) without the first `count`, without reading them.
    #   identity_of(split): the identity of one split, if that is less work.
    #   expected_bytes(split) -> int | None: roughly the size of the split, to estimate the time left.


def identity_of(source: DocumentSource, split: str) -> dict[str, Any]:
    """What determines the bytes of one split."""
    return source.identity_of(split) if hasattr(source, "identity_of") else source.identity()


def held_out(key: str | bytes, fraction: float) -> bool:
    """Whether a document belongs to the validation split: the hash of its key is below the fraction.

    So a document stays in its split whatever other documents are added or removed.

    Args:
        key: the document's name or bytes.
    """
    content = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key
    digest = hashlib.sha256(content).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
