"""Layout strings."""

import pytest

from mambabyte.errors import UserError
from mambabyte.models.layout import parse_layout


@pytest.mark.parametrize("text", ["m4T1", "m4 T1", " m4  T1 ", "m0000000004T1"])
def test_a_letter_for_each_layer(text: str) -> None:
    assert parse_layout(text, "mMtT") == ["m", "m", "m", "m", "T"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *[("", "0 layers"), ("m", "'m'"), ("m0", "'m0'"), ("m4x2", "'x2'"), ("m9999999", "10000")],
        *[("4m", "'4m'"), ("m" + 5000 * "9", "more than 10000 layers"), ("m\uff11", "'m\uff11'")],
        ("m000", "'m000'"),
    ],
    ids=["empty", "uncounted", "zero", "letter", "many", "reversed", "digits", "wide digit", "zeros"],
)
def test_what_is_no_layout_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_layout(text, "mMtT")


@pytest.mark.parametrize("text", [6000 * "m2", 6000 * "m1" + "x"])
def test_a_long_layout_is_not_shown_whole(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_layout(text, "mMtT")
    assert len(str(refused.value)) < 300
