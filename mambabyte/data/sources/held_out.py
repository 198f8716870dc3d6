"""A validation split for data sets of the hub that have none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from mambabyte.config.settings import setting
from mambabyte.data.sources.documents import Document, held_out
from mambabyte.data.sources.huggingface import HuggingFaceSource
from mambabyte.data.windows.streaming import Unit
from mambabyte.errors import UserError


@dataclass
class HeldOutSource(HuggingFaceSource):
    """A data set that has only a train split, some of which is held out.

    A document belongs to "validation" when the hash of its bytes is below validation_fraction. So copies of a
    text are in the same split, and either split can be streamed without a list.
    """

    validation_fraction: float | int = setting(default=0.01, at_least=0, at_most=1)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation")

    def documents(self, split: str) -> Iterator[Document]:
        validation = _is_validation(split)
        for document in super().documents_after("train", 0):
            if held_out(document.data, self.validation_fraction) == validation:
                yield document

    def documents_after(self, split: str, count: int) -> Iterator[Document]:
        # How many of a row group's documents are held out is not known before they are read.
        return islice(self.documents(split), count, None)

    def expected_bytes(self, split: str) -> int | None:
        total = super().expected_bytes("train")
        share = self.validation_fraction if _is_validation(split) else 1 - self.validation_fraction
        return None if total is None else round(total * share)

    def units(self, split: str) -> list[Any]:
        validation = _is_validation(split)
        return [HeldOutUnit(unit, self.validation_fraction, validation) for unit in super().units("train")]

    def identity(self) -> dict[str, Any]:
        return {
            **super().identity(),
            "source": "HeldOutSource",
            "validation_fraction": self.validation_fraction,
        }

    def identity_of(self, split: str) -> dict[str, Any]:
        return self.identity()


@dataclass(frozen=True, eq=False)
class HeldOutUnit:
    """A streaming.Unit without the documents of the other split."""

    unit: Unit
    fraction: float
    validation: bool

    @property
    def identity(self) -> list[Any]:
        return [self.unit.identity, self.fraction, self.validation]

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for data, offsets in self.unit.batches():
            documents = [data[begin:end] for begin, end in pairwise(offsets.tolist())]
            ours = [
                document
                for document in documents
                if held_out(document.tobytes(), self.fraction) == self.validation
            ]
            if len(ours) == len(documents):
                yield data, offsets
            elif ours:
                yield np.concatenate(ours), np.cumsum([0, *map(len, ours)])


def _is_validation(split: str) -> bool:
    if split not in ("train", "validation"):
        raise UserError(f"this data has splits train and validation, not {split!r}")
    return split == "validation"
