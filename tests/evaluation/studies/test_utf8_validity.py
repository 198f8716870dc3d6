"""The share of samples that are valid UTF-8."""

import pytest

from mambabyte.errors import UserError
from mambabyte.evaluation.studies import utf8_validity
from mambabyte.evaluation.studies.utf8_validity import invalid_bytes, measure_utf8_validity
from mambabyte.models import ByteLM


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 0),
        ("aé€🙂".encode(), 0),
        ("a€".encode()[:-1], 0),  # the end cuts it off
        (b"a\xffb", 1),
        (b"\xe2\x82a", 2),
        (b"\x80\x80", 2),
        (b"\xc0\xaf", 2),  # an overlong form
    ],
)
def test_bytes_outside_of_characters(data: bytes, count: int) -> None:
    assert invalid_bytes(data) == count


def test_shares(model: ByteLM, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([b"abcd", b"ab\xff\xff", b"ab\xc3\xa9", b"\xffabc"])
    monkeypatch.setattr(utf8_validity, "generate", lambda *_: next(samples))
    found = measure_utf8_validity(model, 4, 4)
    assert (found.valid_samples, found.valid_bytes) == (0.5, 1 - 3 / 16)


def test_a_model_is_asked_for_its_own_samples(model: ByteLM) -> None:
    found = [measure_utf8_validity(model, 2, 20) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].valid_bytes < 1  # this one knows nothing of UTF-8
    with pytest.raises(UserError):
        measure_utf8_validity(model, 0, 20)
