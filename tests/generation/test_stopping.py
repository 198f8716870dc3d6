"""Stop strings: the text ends before them, and nothing that may belong to one is shown early."""

import pytest

from mambabyte.generation.stopping import Stops


@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        ([b"\n"], b"one\ntwo", [b"o", b"n", b"e", b""]),
        ([b"aab"], b"aaab", [b"", b"", b"a", b""]),
        ([b"abab"], b"abaabab", [b"", b"", b"", b"aba", b"", b"", b""]),
        ([b"cd", b"bcd"], b"abcd", [b"a", b"", b"", b""]),  # the one that began first
        ([b"xyz", b"y"], b"axy", [b"a", b"", b"x"]),
        ([], b"ab", [b"a", b"b"]),
    ],
)
def test_what_is_shown(stops: list[bytes], text: bytes, shown: list[bytes]) -> None:
    found = Stops(stops)
    result = []
    for byte in text:
        if found.found:
            break
        result.append(found.push(byte))
    assert result == shown
    assert found.found == bool(stops)
    assert found.rest() == b""


def test_what_was_held_back_comes_at_the_end() -> None:
    stops = Stops([b"END"])
    assert b"".join(stops.push(byte) for byte in b"the EN") == b"the "
    assert stops.rest() == b"EN"
    assert not stops.found
