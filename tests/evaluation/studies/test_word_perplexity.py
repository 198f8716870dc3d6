"""Word perplexity and the counting of words."""

import ast
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mambabyte.data import ByteCorpus
from mambabyte.evaluation.studies.word_perplexity import (
    PG19,
    count_words,
    measure_word_perplexity,
    word_perplexity,
    word_perplexity_study,
)

TEXTS = [
    b"",
    b" ",
    b"one",
    b"  two words\n",
    b"tabs\tand\x0bothers\x0c\r\n x",
    "a\u00a0b \u2003 é".encode(),
    b"\xff\xfe \x00 z",
]


def documents(texts: list[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(text, np.uint8) for text in texts]


def test_the_published_pair() -> None:
    # MambaByte's release: this cross entropy on PG19's test split is a word perplexity of 33.05
    assert word_perplexity(0.5901387288495581, *PG19["test"]) == pytest.approx(33.05, abs=0.005)


def test_there_is_none_without_words_or_beyond_a_float() -> None:
    assert word_perplexity(1.0, 100, 0) is None
    assert word_perplexity(5.0, 10**6, 1) is None
    assert word_perplexity(1.0, 709, 1) == pytest.approx(math.exp(709))


def test_the_reason_stands_where_the_figure_is_not() -> None:
    for text, reason in (
        (b"a" * 5000, "its words are too long for a float64"),
        (b"\n\n", "there are no words"),
    ):
        data = np.frombuffer(text, np.uint8)
        study = word_perplexity_study(1.0, ByteCorpus(data, np.array([0, len(data)]), ["a"]))
        assert (study.values["word_perplexity"], study.values["reason"]) == (None, reason)
        assert study.lines[0].startswith(f"word perplexity: none, {reason} (")


def test_words_are_what_separates_them(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sum(len(text.split()) for text in TEXTS)  # of bytes: ASCII white space
    for chunk in (1, 2, 3, 1 << 24):
        monkeypatch.setattr("mambabyte.evaluation.studies.word_perplexity.CHUNK_BYTES", chunk)
        assert count_words(documents(TEXTS)) == expected


def test_the_examples_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text("utf-8")
    rows = re.findall(r'^\| `(b".*?")`.*?\| (\d+) \| \d+ \|$', page, re.MULTILINE)
    assert len(rows) == 5
    for text, words in rows:
        assert count_words(documents([ast.literal_eval(text)])) == int(words), text


@pytest.mark.skipif(shutil.which("wc") is None, reason="needs wc")
def test_words_are_those_of_wc(tmp_path: Path) -> None:
    printable = TEXTS[:5]  # versions of wc differ on words of unprintable characters
    for number, text in enumerate(printable):
        (tmp_path / str(number)).write_bytes(text)
    done = subprocess.run(
        ["wc", "-w", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, check=True, env={"LC_ALL": "C"},
    )  # fmt: skip
    assert count_words(documents(printable)) == int(done.stdout.splitlines()[-1].split()[0])


def corpus(meta: dict) -> ByteCorpus:
    data = np.frombuffer(b"to be or not", np.uint8)
    return ByteCorpus(data, np.array([0, 12]), ["a"], meta)


def test_pg19_has_its_published_counts_and_other_corpora_are_counted() -> None:
    whole = {"identity": {"name": "emozilla/pg19"}, "split": "test", "max_bytes": None}
    found = measure_word_perplexity(0.5901387288495581, corpus(whole))
    assert (found.words, found.counts) == (6_965_511, "published")
    for meta in ({}, {**whole, "max_bytes": 12}, {**whole, "identity": {"name": "other"}}):
        found = measure_word_perplexity(0.5, corpus(meta))
        assert (found.bytes, found.words, found.counts) == (12, 4, "counted")
        assert found.word_perplexity == pytest.approx(math.exp(0.5 * 12 / 4), rel=1e-12)
