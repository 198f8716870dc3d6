"""Numbers as text."""

import pytest

from mambabyte.runtime.units import byte_count, counted, duration, short_count


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (200, "3 m 20 s"),
        (3600 * 5 + 730, "5 h 12 m"),
        (86400 * 2 + 3600 * 3, "2 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_byte_counts() -> None:
    assert byte_count(999) == "999 B"
    assert byte_count(14_200) == "14.2 kB"
    assert byte_count(1_200_000, of=7_400_000) == "1.2/7.4 MB"
    assert byte_count(41e9) == "41.0 GB"


def test_counts() -> None:
    assert (counted(1, "document"), counted(2000, "byte")) == ("1 document", "2,000 bytes")
    assert (short_count(1_746_816), short_count(0.5), short_count(2e18)) == ("1.75M", "0.5", "2E")
    assert (short_count(1_060_000_000, "FLOP"), short_count(12, "FLOP")) == ("1.06 GFLOP", "12 FLOP")
