"""Small corpora shared by the tests of data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambabyte.data.corpus.corpus import ByteCorpus, prepare
from mambabyte.data.sources.documents import Document


class MemorySource:
    """Yields documents from a list, the same in every split, in units of two; counts how often it is read."""

    def __init__(self, contents: list[bytes]) -> None:
        self.contents = contents
        self.reads = 0

    def documents(self, split: str) -> Iterator[Document]:
        self.reads += 1
        for number, data in enumerate(self.contents):
            yield Document(f"document-{number}", data)

    def identity(self) -> dict[str, Any]:
        return {"source": "MemorySource", "contents": [data.hex() for data in self.contents]}

    def units(self, split: str) -> list[MemoryUnit]:
        return [MemoryUnit(self.contents[first : first + 2]) for first in range(0, len(self.contents), 2)]


@dataclass(eq=False)
class MemoryUnit:
    """A streaming unit from a list, in batches of at most three documents that come after other bytes."""

    contents: list[bytes]

    @property
    def identity(self) -> list[str]:
        return [data.hex() for data in self.contents]

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, len(self.contents), 3):
            batch = self.contents[first : first + 3]
            data = np.frombuffer(b"before" + b"".join(batch), np.uint8)
            yield data, np.cumsum([6, *map(len, batch)])


def random_documents(lengths: list[int], seed: int = 0) -> list[bytes]:
    """Documents of random bytes of all 256 values, hardly any of them valid UTF-8."""
    generator = random.Random(seed)
    return [generator.randbytes(length) for length in lengths]


@pytest.fixture
def memory_source():
    return MemorySource


@pytest.fixture
def memory_unit():
    return MemoryUnit


@pytest.fixture
def make_documents():
    return random_documents


@pytest.fixture
def make_corpus(tmp_path: Path):
    def make(contents: list[bytes]) -> ByteCorpus:
        return prepare(MemorySource(contents), "train", tmp_path / "prepared")

    return make
