"""How much of what a model generates is valid UTF-8, which a byte model has to learn (arXiv 2606.14122)."""

import codecs
from dataclasses import asdict, dataclass

from mambabyte.errors import UserError
from mambabyte.evaluation.studies import Study
from mambabyte.generation import Sampler, generate
from mambabyte.models import ByteLM

TEMPERATURE = 1.0  # samples from the model's own distribution


@dataclass(frozen=True)
class Utf8Validity:
    """The share of samples that are valid, and the share of all bytes that are part of valid characters."""

    valid_samples: float
    valid_bytes: float
    samples: int
    sample_bytes: int
    temperature: float = TEMPERATURE


def utf8_study(model: ByteLM, samples: int, sample_bytes: int) -> Study:
    found = measure_utf8_validity(model, samples, sample_bytes)
    line = (
        f"samples: {100 * found.valid_samples:.1f} % of {samples} samples are valid UTF-8, "
        f"{100 * found.valid_bytes:.2f} % of their bytes ({sample_bytes} bytes each, "
        f"temperature {found.temperature:g})"
    )
    return Study(asdict(found), [line])


def measure_utf8_validity(model: ByteLM, samples: int, sample_bytes: int) -> Utf8Validity:
    """Draw samples that begin at the start of a line, with seeds 0, 1, ...; a last character that the end of
    the sample cuts off counts as valid.

    Raises:
        UserError: fewer than one sample, or one byte.
    """
    if samples < 1 or sample_bytes < 1:
        raise UserError(f"samples and sample_bytes must be 1 or more, not {samples} and {sample_bytes}")
    samplers = [Sampler(TEMPERATURE, seed=seed) for seed in range(samples)]
    invalid = [invalid_bytes(bytes(generate(model, b"", sample_bytes, sampler))) for sampler in samplers]
    valid_samples = sum(count == 0 for count in invalid) / samples
    valid_bytes = 1 - sum(invalid) / (samples * sample_bytes)
    return Utf8Validity(valid_samples, valid_bytes, samples, sample_bytes)


def invalid_bytes(data: bytes) -> int:
    """Bytes that belong to no character, except the beginning of one that the end cuts off."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    return sum("\udc80" <= character <= "\udcff" for character in decoder.decode(data))
