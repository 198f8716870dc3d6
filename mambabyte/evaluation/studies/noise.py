"""Noised texts: the six kinds of MambaByte's Table 6 (after ByT5, arXiv 2105.13626), at its probabilities.

Noise falls on characters. Bytes that are no UTF-8 count as a character each and come through unchanged.
"""

import random
from collections.abc import Callable

import numpy as np

from mambabyte.data import ByteCorpus

Noise = Callable[[str, random.Random], str]


def drop(probability: float) -> Noise:
    """Each character is left out with this probability."""
    return lambda text, draws: "".join(c for c in text if draws.random() >= probability)


def repeat(probability: float) -> Noise:
    """Each character is followed, with this probability, by one to three more of itself."""
    return lambda text, draws: "".join(
        c * (1 + draws.randint(1, 3)) if draws.random() < probability else c for c in text
    )


def antspeak(text: str, draws: random.Random) -> str:
    """Every character becomes a capital with a space before it: "an owl" is " A N   O W L"."""
    return "".join(f" {c.upper()}" for c in text)


def uppercase(probability: float) -> Noise:
    """Each character becomes a capital with this probability."""
    return lambda text, draws: "".join(c.upper() if draws.random() < probability else c for c in text)


def random_case(text: str, draws: random.Random) -> str:
    """Each character becomes a capital or a small letter, with equal probability."""
    return "".join(c.upper() if draws.random() < 0.5 else c.lower() for c in text)


def swap(probability: float) -> Noise:
    """Each character changes places with the next, with this probability; none moves twice."""

    def apply(text: str, draws: random.Random) -> str:
        characters = list(text)
        place = 0
        while place + 1 < len(characters):
            if draws.random() < probability:
                characters[place : place + 2] = characters[place + 1], characters[place]
                place += 1
            place += 1
        return "".join(characters)

    return apply


NOISES: dict[str, Noise] = {
    "drop 0.05": drop(0.05),
    "drop 0.3": drop(0.3),
    "repeat 0.05": repeat(0.05),
    "repeat 0.3": repeat(0.3),
    "antspeak": antspeak,
    "uppercase 0.05": uppercase(0.05),
    "uppercase 0.3": uppercase(0.3),
    "random case": random_case,
    "swap 0.05": swap(0.05),
    "swap 0.3": swap(0.3),
}


def noised(corpus: ByteCorpus, name: str, max_bytes: int | None = None, seed: int = 0) -> ByteCorpus:
    """The corpus (its first ``max_bytes``) with one of ``NOISES`` in it, the same for the same seed."""
    from mambabyte.evaluation.bits_per_byte import first_documents

    draws = random.Random(f"{name} {seed}")
    documents = [
        NOISES[name](bytes(document).decode("utf-8", "surrogateescape"), draws)
        for document in first_documents(corpus, max_bytes)
    ]
    data = [np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8) for text in documents]
    offsets = np.concatenate(([0], np.cumsum([len(each) for each in data]))).astype(np.int64)
    return ByteCorpus(np.concatenate(data), offsets, [str(i) for i in range(len(data))])
