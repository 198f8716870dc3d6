"""Proof of a figure: the measured bytes, compressed to a file of that size and decompressed again."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mambabyte.coding.coder import decode, encode
from mambabyte.coding.predictions import MAX_LANES
from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.runtime.progress import ProgressCallback


@dataclass(frozen=True)
class Proof:
    """A file of ``file_bytes``, with ``overhead`` for header and checksums, decompressed to ``bytes`` bytes.

    relative_difference: between the file's bits per byte and the computed figure.
    """

    bytes: int
    file_bytes: int
    overhead: int
    bits_per_byte: float
    computed_bits_per_byte: float

    @property
    def relative_difference(self) -> float:
        return self.bits_per_byte / self.computed_bits_per_byte - 1

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "relative_difference": self.relative_difference}

    def __str__(self) -> str:
        return (
            f"{self.bytes:,} bytes compressed to {self.file_bytes:,} and back: {self.bits_per_byte:.4f} bits "
            f"per byte, {100 * self.relative_difference:+.3f} % from the computed "
            f"{self.computed_bits_per_byte:.4f} ({self.overhead:,} bytes are header and checksums)"
        )


def prove(
    model: ByteLM,
    documents: Sequence[np.ndarray],
    computed: float,
    window: int | None,
    progress: Callable[[str], ProgressCallback] | None = None,
) -> Proof:
    """Compress the documents, each a segment, to a temporary file; decompress it; compare every byte.

    Args:
        computed: the measured bits per byte, by protocol ``stateful``, or with ``window`` by ``disjoint``.

    Raises:
        UserError: the decompressed bytes differ, or see :func:`mambabyte.coding.encode`.
    """
    show = progress or (lambda label: lambda done, total: None)
    lengths = [len(document) for document in documents]
    data = np.concatenate(documents)
    with tempfile.TemporaryFile() as file:
        threads = torch.get_num_threads()
        coded = encode(model, data, lengths, file, MAX_LANES, window, threads, show("compressing"))
        file.seek(0)
        back = decode(model, file, lambda size: np.zeros(size, np.uint8), show("decompressing"))
    if not np.array_equal(back, data):
        raise UserError("the proof failed: decompression gave other bytes; please report this as a bug")
    return Proof(coded.bytes, coded.file_bytes, coded.overhead, coded.bits_per_byte, computed)
