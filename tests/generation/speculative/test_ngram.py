"""What followed the last time."""

from itertools import islice

import pytest

from mambabyte.generation import Sampler
from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative import NgramDrafter, ngram

LINE = b"    def __init__(self, name: str) -> None:\n"


def guessed(drafter: NgramDrafter, count: int) -> list[bytes]:
    """The first guesses of each row."""
    rows: list[bytearray] = []
    for guesses in islice(drafter.guesses([Draws(Sampler(0))] * 9), count):
        rows = rows or [bytearray() for _ in guesses]
        for row, guess in zip(rows, guesses, strict=True):
            row += b"" if guess is None else bytes([guess.byte])
    return [bytes(row) for row in rows]


def test_what_was_read_before_is_guessed() -> None:
    drafter = NgramDrafter()
    drafter.append(LINE + b"        self.name = name\n" + LINE[:10], 1)
    assert guessed(drafter, 50) == [(LINE + b"        self.name = name\n")[10:60]]


def test_what_was_written_is_known_too_and_the_last_time_counts() -> None:
    drafter = NgramDrafter()
    drafter.append(b"", 1)
    drafter.push([b"one time: first, one time: second, "])
    drafter.push([b"one ti"])
    assert guessed(drafter, 12) == [b"me: second, "]


def test_the_longest_match_is_followed() -> None:
    drafter = NgramDrafter()
    drafter.append(b"the first of all: one. a number of all: two. the first of all", 1)
    assert guessed(drafter, 5) == [b": one"]


def test_a_text_that_repeats_itself_is_guessed_for_ever() -> None:
    drafter = NgramDrafter()
    drafter.append(b"abcabcabcabc", 1)
    assert guessed(drafter, 100) == [b"abc" * 33 + b"a"]


def test_rows_have_each_a_text_of_their_own() -> None:
    drafter = NgramDrafter()
    drafter.append(b"a common begin, ", 2)
    drafter.append(b"", 1)
    drafter.push([b"x", b"y", b"z"])
    drafter.push([b"a common begin", b"a common begin", b"a common begin"])
    assert guessed(drafter, 3) == [b", x", b", y", b""]
    drafter.select([1, 1])
    drafter.push([b", y1 a common begin, ", b", y2 a common begin, "])
    drafter.push([b"", b"y"])
    assert guessed(drafter, 2) == [b"y1", b"2 "]
    drafter.select([])
    assert guessed(drafter, 3) == []


def test_new_bytes_are_not_guessed() -> None:
    drafter = NgramDrafter()
    drafter.append(bytes(range(256)), 1)
    assert guessed(drafter, 3) == []


def test_memory_is_bounded_and_old_text_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "HISTORY", 100)
    drafter = NgramDrafter()
    drafter.append(LINE, 1)
    for number in range(40):
        drafter.push([b"%06d other text " % number])
        if number == 20:
            drafter.push([LINE[:20]])
            assert guessed(drafter, 20) == []
            drafter.push([LINE[20:] + b"and " + LINE[:20]])
            assert guessed(drafter, 20) == [LINE[20:40]]
    (text,) = drafter._texts
    assert len(text._text) < 200


def test_guesses_by_longer_matches_are_of_other_kinds() -> None:
    drafter = NgramDrafter()
    drafter.append(LINE + LINE[:6], 1)
    kinds = [guess.kind for (guess,) in islice(drafter.guesses([Draws(Sampler(0))]), 30)]
    assert kinds == sorted(kinds) and len(set(kinds)) > 4
