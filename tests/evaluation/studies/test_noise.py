"""Each noise does what its name and probability say, to characters, and nothing to bytes that are none."""

import random
import re

import numpy as np
import pytest

from mambabyte.data import ByteCorpus
from mambabyte.evaluation.studies.noise import NOISES, noised

TEXT = "The quick brown fox, čeština ß 🙂. " * 300


def applied(name: str, text: str = TEXT) -> str:
    return NOISES[name](text, random.Random(0))


@pytest.mark.parametrize("probability", [0.05, 0.3])
def test_shares_are_the_probabilities(probability: float) -> None:
    size = len(TEXT)
    margin = 4 * (probability * (1 - probability) / size) ** 0.5  # four standard deviations
    assert 1 - len(applied(f"drop {probability}")) / size == pytest.approx(probability, abs=margin)
    # one to three more, two on average, of which the variance is 2/3: the margin more than doubles
    assert (len(applied(f"repeat {probability}")) / size - 1) / 2 == pytest.approx(
        probability, abs=1.5 * margin
    )
    lower = "a" * size
    share = applied(f"uppercase {probability}", lower).count("A") / size
    assert share == pytest.approx(probability, abs=margin)
    swapped = applied(f"swap {probability}", "ab" * (size // 2))
    moved = sum(a != b for a, b in zip(swapped, "ab" * (size // 2), strict=False)) / 2
    # a pair moves when its first character does and was not moved itself: p / (1 + p) of the places
    assert moved / size == pytest.approx(probability / (1 + probability), abs=margin)


def test_swapping_keeps_the_characters() -> None:
    assert sorted(applied("swap 0.3")) == sorted(TEXT) and applied("swap 0.3") != TEXT
    assert [applied("swap 0.3", text) for text in ("", "a")] == ["", "a"]


def test_repetition_keeps_the_order() -> None:
    assert re.sub(r"(.)\1*", r"\1", applied("repeat 0.3")) == re.sub(r"(.)\1*", r"\1", TEXT)


def test_cases() -> None:
    assert applied("antspeak", "an owl") == " A N   O W L"
    mixed = applied("random case", "a" * 4000)
    assert mixed.count("A") / 4000 == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
    assert applied("random case", "Abc xyZ ž" * 50).lower() == "abc xyz ž" * 50


def test_a_noised_corpus_keeps_documents_and_strange_bytes_and_is_the_same_each_time() -> None:
    data = np.frombuffer(b"one \xff\xfe two" + "\u00e9".encode() * 50, np.uint8)
    corpus = ByteCorpus(data, np.array([0, 10, 10, len(data)]), list("abc"))
    for name in NOISES:
        first, again = noised(corpus, name), noised(corpus, name)
        assert first.fingerprint == again.fingerprint
        assert first.num_documents == 2
    assert bytes(noised(corpus, "antspeak").document(0)) == b" O N E   \xff \xfe   T W O"[: 2 * 10]
    assert noised(corpus, "antspeak", max_bytes=3).num_bytes == 6
