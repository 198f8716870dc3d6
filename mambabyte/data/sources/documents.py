"""What a source of text is: named documents of raw bytes, in train, validation and test splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

SPLITS = ("train", "validation", "test")


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
