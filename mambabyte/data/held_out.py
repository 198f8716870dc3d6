"""A validation split for data sets of the hub that come without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mambabyte.data.documents import Document, check_fraction, held_out
from mambabyte.data.huggingface import HuggingFaceSource
from mambabyte.errors import UserError


class HeldOutSource(HuggingFaceSource):
    """A data set with nothing but a train split, of which a share is held out.

    A document belongs to "validation" when the hash of its bytes falls below validation_fraction. So copies
    of one text never stand on both sides, and no list is needed to stream one side without the other.
    """

    def __init__(self, validation_fraction: float = 0.01, **source: Any) -> None:
        super().__init__(**source)
        check_fraction(validation_fraction)
        self.validation_fraction = validation_fraction

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation")

    def documents(self, split: str) -> Iterator[Document]:
        validation = self._is_validation(split)
        for document in super().documents("train"):
            if held_out(document.data, self.validation_fraction) == validation:
                yield document

    def stream(
        self, split: str, cursor: dict[str, Any] | None = None
    ) -> Iterator[tuple[bytes, dict[str, Any]]]:
        validation = self._is_validation(split)
        for document, place in super().stream("train", cursor):
            if held_out(document, self.validation_fraction) == validation:
                yield document, place

    def identity(self) -> dict[str, Any]:
        return {
            **super().identity(),
            "source": "HeldOutSource",
            "validation_fraction": self.validation_fraction,
        }

    @staticmethod
    def _is_validation(split: str) -> bool:
        if split not in ("train", "validation"):
            raise UserError(f"this data has splits train and validation, not {split!r}")
        return split == "validation"
