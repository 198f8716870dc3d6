"""Small corpora that the tests of this room share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mambabyte.data.documents import Document
from mambabyte.data.prepared import ByteCorpus, prepare


class MemorySource:
    """Documents from a list, in every split; counts how often it was read. A stream's cursor is a row."""

    def __init__(self, contents: list[bytes]) -> None:
        self.contents = contents
        self.reads = 0

    def documents(self, split: str) -> Iterator[Document]:
        self.reads += 1
        for number, data in enumerate(self.contents):
            yield Document(f"document-{number}", data)

    def identity(self) -> dict[str, Any]:
        return {"source": "MemorySource", "contents": [data.hex() for data in self.contents]}

    def stream(
        self, split: str, cursor: dict[str, Any] | None = None
    ) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for row in range(cursor["row"] if cursor else 0, len(self.contents)):
            yield self.contents[row], {"row": row}


def random_documents(lengths: list[int], seed: int = 0) -> list[bytes]:
    """Documents of random bytes, all 256 values, so hardly any of it is valid UTF-8."""
    generator = random.Random(seed)
    return [generator.randbytes(length) for length in lengths]


@pytest.fixture
def memory_source():
    return MemorySource


@pytest.fixture
def make_documents():
    return random_documents


@pytest.fixture
def make_corpus(tmp_path: Path):
    def make(contents: list[bytes]) -> ByteCorpus:
        return prepare(MemorySource(contents), "train", tmp_path / "prepared")

    return make
