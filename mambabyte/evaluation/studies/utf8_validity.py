"""How much of what a model writes is valid UTF-8: a byte model has to learn that too (arXiv 2606.14122)."""

import codecs
from dataclasses import asdict, dataclass
from typing import Any

from mambabyte.errors import UserError
from mambabyte.generation import Sampler, generate
from mambabyte.models import ByteLM


@dataclass(frozen=True)
class Validity:
    """Shares of the samples that are valid, and of all bytes that stand in valid characters."""

    valid_samples: float
    valid_bytes: float
    samples: int
    sample_bytes: int
    temperature: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{100 * self.valid_samples:.1f} % of {self.samples} samples are valid UTF-8, "
            f"{100 * self.valid_bytes:.2f} % of their bytes ({self.sample_bytes} bytes each, "
            f"temperature {self.temperature:g})"
        )


def utf8_validity(model: ByteLM, samples: int, sample_bytes: int, temperature: float = 1.0) -> Validity:
    """Draw samples from a line's start, with seeds 0, 1, ...; a character cut off by the end is no fault.

    Raises:
        UserError: fewer than one sample, or one byte.
    """
    if samples < 1 or sample_bytes < 1:
        raise UserError(f"samples and sample_bytes must be 1 or more, not {samples} and {sample_bytes}")
    drawn = [
        bytes(generate(model, b"", sample_bytes, Sampler(temperature, seed=seed))) for seed in range(samples)
    ]
    invalid = [invalid_bytes(sample) for sample in drawn]
    return Validity(
        sum(count == 0 for count in invalid) / samples,
        1 - sum(invalid) / (samples * sample_bytes),
        samples,
        sample_bytes,
        temperature,
    )


def invalid_bytes(data: bytes) -> int:
    """Bytes that belong to no character, but for the beginning of one that the end cuts off."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    return sum("\udc80" <= character <= "\udcff" for character in decoder.decode(data))
