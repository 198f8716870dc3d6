"""Robustness to noise: the six kinds of MambaByte's Table 6 (after ByT5, arXiv 2105.13626).

Noise falls on characters. Each byte that is not valid UTF-8 counts as a character and stays unchanged.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mambabyte.data import ByteCorpus
from mambabyte.evaluation.bits_per_byte import BitsPerByte, first_documents
from mambabyte.evaluation.studies import Study
from mambabyte.evaluation.studies.word_perplexity import count_words, no_perplexity, perplexity

Noise = Callable[[str, random.Random], str]


def drop(text: str, draws: random.Random, probability: float) -> str:
    """Each character is left out with this probability."""
    return "".join(c for c in text if draws.random() >= probability)


def repeat(text: str, draws: random.Random, probability: float) -> str:
    """Each character is followed, with this probability, by one to three copies of itself."""
    return "".join(c * (1 + draws.randint(1, 3)) if draws.random() < probability else c for c in text)


def antspeak(text: str, draws: random.Random) -> str:
    """Every character becomes upper case with a space before it: "an owl" is " A N   O W L"."""
    return "".join(f" {c.upper()}" for c in text)


def uppercase(text: str, draws: random.Random, probability: float) -> str:
    """Each character becomes upper case with this probability."""
    return "".join(c.upper() if draws.random() < probability else c for c in text)


def random_case(text: str, draws: random.Random) -> str:
    """Each character becomes upper or lower case, with equal probability."""
    return "".join(c.upper() if draws.random() < 0.5 else c.lower() for c in text)


def swap(text: str, draws: random.Random, probability: float) -> str:
    """Each character is swapped with the next, with this probability; none moves twice."""
    characters, place = list(text), 0
    while place + 1 < len(characters):
        if draws.random() < probability:
            characters[place : place + 2] = characters[place + 1], characters[place]
            place += 1
        place += 1
    return "".join(characters)


NOISES: dict[str, Noise] = {
    "drop 0.05": partial(drop, probability=0.05),
    "drop 0.3": partial(drop, probability=0.3),
    "repeat 0.05": partial(repeat, probability=0.05),
    "repeat 0.3": partial(repeat, probability=0.3),
    "antspeak": antspeak,
    "uppercase 0.05": partial(uppercase, probability=0.05),
    "uppercase 0.3": partial(uppercase, probability=0.3),
    "random case": random_case,
    "swap 0.05": partial(swap, probability=0.05),
    "swap 0.3": partial(swap, probability=0.3),
}


def noise_study(
    corpus: ByteCorpus,
    clean: BitsPerByte,
    measure: Callable[[ByteCorpus, str], BitsPerByte],
    max_bytes: int | None,
) -> Study:
    """Every noise on the first ``max_bytes`` of the corpus.

    Args:
        clean: the same bytes without noise.
        measure: called with a noised corpus and the name of the noise; measures as ``clean`` was measured.
    """
    words = count_words(first_documents(corpus, max_bytes))
    before = perplexity(clean.nats, words)
    rows = []
    for name in NOISES:
        result = measure(noised(corpus, name, max_bytes), name)
        after = perplexity(result.nats, words)
        row: dict[str, Any] = {"noise": name, "bits_per_byte": result.bits_per_byte, "bytes": result.bytes}
        row["word_perplexity"] = after
        row["increase"] = None if before is None or after is None else after - before
        rows.append(row if row["increase"] is not None else row | {"reason": no_perplexity(words)})
    if before is None:
        lines = [f"noise: bits per byte; no word perplexity, {no_perplexity(words)}:"]
    else:
        lines = [f"noise: bits per byte, and word perplexity above {before:.6g}:"]
    for row in rows:
        increase = "" if row["increase"] is None else f"{row['increase']:+14.6g}"
        lines.append(f"  {row['noise']:16}{row['bits_per_byte']:8.4f}{increase}")
    return Study(rows, lines)


def noised(corpus: ByteCorpus, name: str, max_bytes: int | None = None, seed: int = 0) -> ByteCorpus:
    """The first ``max_bytes`` of the corpus with one of ``NOISES``, the same for the same seed."""
    draws = random.Random(f"{name} {seed}")
    documents = [
        NOISES[name](bytes(document).decode("utf-8", "surrogateescape"), draws)
        for document in first_documents(corpus, max_bytes)
    ]
    data = [np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8) for text in documents]
    offsets = np.concatenate(([0], np.cumsum([len(each) for each in data]))).astype(np.int64)
    return ByteCorpus(np.concatenate(data), offsets, [str(i) for i in range(len(data))])
