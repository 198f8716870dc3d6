"""Word perplexity from bits per byte, by the rule of MambaByte's release."""

import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from mambabyte.data import ByteCorpus
from mambabyte.evaluation.studies import Study

CHUNK_BYTES = 1 << 24  # read at a time
_IS_SPACE = np.isin(np.arange(256), list(b" \t\n\v\f\r"))
# Bytes and words (wc -w) of PG19's splits, which MambaByte's release publishes with its perplexities.
PG19 = {
    "train": (11_677_824_216, 1_973_048_393),
    "validation": (17_733_002, 3_007_061),
    "test": (41_289_101, 6_965_511),
}
PG19_NAMES = ("deepmind/pg19", "emozilla/pg19", "fla-hub/pg19")


@dataclass(frozen=True)
class WordPerplexity:
    """Word perplexity, as :func:`perplexity` has it, and its counts, ``counted`` or ``published``."""

    word_perplexity: float | None
    bytes: int
    words: int
    counts: str


def word_perplexity_study(nats_per_byte: float, corpus: ByteCorpus) -> Study:
    found = measure_word_perplexity(nats_per_byte, corpus)
    source = "as published for PG19" if found.counts == "published" else "of the split"
    counts = f"{found.bytes:,} bytes, {found.words:,} words {source}"
    if found.word_perplexity is None:
        reason = no_perplexity(found.words)
        return Study(asdict(found) | {"reason": reason}, [f"word perplexity: none, {reason} ({counts})"])
    return Study(asdict(found), [f"word perplexity: {found.word_perplexity:,.2f} ({counts})"])


def word_perplexity(nats_per_byte: float, split_bytes: int, split_words: int) -> float | None:
    """exp(nats per byte x bytes per word), over the whole split."""
    return perplexity(nats_per_byte * split_bytes, split_words)


def perplexity(nats: float, words: int) -> float | None:
    """exp(nats per word); None without words, or where it is beyond a float64."""
    return math.exp(nats / words) if words and nats / words < math.log(sys.float_info.max) else None


def no_perplexity(words: int) -> str:
    """Why :func:`perplexity` is None."""
    return "its words are too long for a float64" if words else "there are no words"


def measure_word_perplexity(nats_per_byte: float, corpus: ByteCorpus) -> WordPerplexity:
    """From the published counts for a whole split of PG19 from the hub, else from counts of the corpus.

    Counts are of the whole corpus, even if only its first bytes were scored.
    """
    identity = corpus.meta.get("identity", {})
    published = PG19.get(corpus.meta.get("split", "")) if identity.get("name") in PG19_NAMES else None
    if published and corpus.meta.get("max_bytes") is None:
        counts, (size, words) = "published", published
    else:
        counts, size = "counted", corpus.num_bytes
        words = count_words(corpus.document(i) for i in range(corpus.num_documents))
    return WordPerplexity(word_perplexity(nats_per_byte, size, words), size, words, counts)


def count_words(documents: Iterable[np.ndarray]) -> int:
    """Count the runs of bytes that are not ASCII white space.

    GNU's ``wc -w`` counts fewer: docs/evaluation.md shows where.
    """
    words = 0
    for document in documents:
        after_space = True
        for start in range(0, len(document), CHUNK_BYTES):
            space = _IS_SPACE[document[start : start + CHUNK_BYTES]]
            words += int(np.count_nonzero(space[:-1] & ~space[1:])) + int(after_space and not space[0])
            after_space = bool(space[-1])
    return words
