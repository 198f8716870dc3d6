"""Nothing that a terminal would obey is left of text of unknown origin."""

import unicodedata

import pytest

from mambabyte.runtime.terminal import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[31mred\x1b[2J", "␛]0;title␇␛[31mred␛[2J"),
        ("a\rb\x08\x00\x7f", "a␍b␈␀␡"),
        ("\x9b31m", "\\x9b31m"),
        ("gpj.\u202egnp", "gpj.\\u202egnp"),
        ("lines\nand\ttabs, čeština 語 🙂, می‌خواهم", "lines\nand\ttabs, čeština 語 🙂, می‌خواهم"),
    ],
)
def test_symbols_stand_for_what_a_terminal_obeys(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_no_control_character_is_left() -> None:
    controls = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cc"]
    assert not {"Cc"} & {unicodedata.category(c) for c in visible("".join(controls), keep="")}
    assert visible("a\nb", keep="") == "a␊b"
