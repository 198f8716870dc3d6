"""The draws: what each setting means, rows apart, noise that belongs to a place, and valid UTF-8."""

import numpy as np
import pytest

from mambabyte.errors import UserError
from mambabyte.generation import Sampler
from mambabyte.generation.sampler import Draws, draw
from mambabyte.generation.utf8 import Utf8Position

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(5, 256)).astype(np.float32)


def of(probabilities: dict[int, float]) -> np.ndarray:
    logits = np.full(256, -np.inf)
    for byte, probability in probabilities.items():
        logits[byte] = np.log(probability)
    return logits


def kept(sampler: Sampler, probabilities: dict[int, float], read: bytes = b"") -> dict[int, float]:
    found = Draws(sampler, read).probabilities(of(probabilities))
    return {int(byte): round(float(found[byte]), 6) for byte in np.flatnonzero(found)}


FOUR = {0: 0.05, 1: 0.5, 2: 0.15, 3: 0.3}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, FOUR),
        ({"min_p": 0.3}, {1: 0.526316, 2: 0.157895, 3: 0.315789}),  # 0.15 >= 0.3 * 0.5
        ({"min_p": 0.31}, {1: 0.625, 3: 0.375}),
        ({"min_p": 0.0}, FOUR),
        ({"top_k": 3, "min_p": 0.31}, {1: 0.625, 3: 0.375}),
        ({"top_k": 2, "top_p": 0.62}, {1: 1.0}),  # of the two, the first has 0.625
        ({"top_k": 2, "top_p": 0.63}, {1: 0.625, 3: 0.375}),
        ({"temperature": 0}, {1: 1.0}),
    ],
)
def test_settings_follow_one_another(settings: dict, expected: dict) -> None:
    assert kept(Sampler(**{"temperature": 1.0, **settings}), FOUR) == pytest.approx(expected, abs=1e-6)


def test_a_repetition_penalty_is_of_the_last_64_bytes() -> None:
    sampler = Sampler(1.0, repetition_penalty=2.0)
    logits = np.zeros(256)
    logits[:3] = 2.0, -2.0, 2.0
    expected = logits.copy()
    expected[:2] = 1.0, -4.0  # 2 has been 65 bytes ago
    found = Draws(sampler, b"\x02" + bytes([0, 1] * 32)).probabilities(logits)
    np.testing.assert_allclose(found, np.exp(expected) / np.exp(expected).sum(), rtol=1e-12)
    row = Draws(Sampler(0, repetition_penalty=2.0))
    assert [row(logits), row(logits), row(logits)] == [0, 2, 0]  # what was drawn counts, too


def test_a_row_is_drawn_the_same_in_any_batch() -> None:
    samplers = [
        Sampler(1.0, seed=3), Sampler(0), Sampler(0.7, top_k=5, seed=3), Sampler(1.0, seed=3, sample=1),
        Sampler(1.3, top_p=0.5, min_p=0.01, repetition_penalty=1.2, valid_utf8=True, seed=4),
    ]  # fmt: skip
    together, alone = [Draws(s) for s in samplers], [Draws(s) for s in samplers]
    for _ in range(200):
        assert draw(together, LOGITS) == [row(LOGITS[i]) for i, row in enumerate(alone)]
    assert together[0].position == 200


def test_samples_of_a_seed_and_seeds_differ() -> None:
    settings = [(0, 0), (0, 1), (1, 0)]
    rows = [Draws(Sampler(1.0, seed=seed, sample=sample)) for seed, sample in settings]
    texts = [bytes(row(LOGITS[0]) for _ in range(40)) for row in rows]
    assert len(set(texts)) == 3


def test_a_guess_leaves_the_draws_where_they_are() -> None:
    row = Draws(Sampler(1.0, seed=5, repetition_penalty=1.5, valid_utf8=True))
    ahead = row.ahead()
    guessed = [ahead(LOGITS[0]) for _ in range(70)]
    assert [row(LOGITS[0]) for _ in range(70)] == guessed


def test_the_noise_of_far_places_is_fresh() -> None:
    row = Draws(Sampler(1.0))
    seen = set()
    for _ in range(300):
        seen.add(row.noise().tobytes())
        row.push(0)
    assert len(seen) == 300


def valid(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_only_what_python_decodes_is_allowed() -> None:
    """Every sequence of up to four bytes from the edges of UTF-8's ranges."""
    edges = [0, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED]
    edges += [0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]
    reached: list[tuple[bytes, Utf8Position]] = [(b"", Utf8Position())]
    for _ in range(4):
        longer = []
        for text, position in reached:
            for byte in edges:
                # A beginning of valid text is what some continuation makes valid.
                possible = any(
                    valid(text + bytes([byte, *tail]))
                    for tail in ([], [0x80], [0x90], [0xA0], [0x80] * 2, [0x90, 0x80], [0xA0, 0x80],
                                 [0x90, 0x80, 0x80], [0x80] * 3)
                )  # fmt: skip
                assert position.allowed(None)[byte] == possible, (text, byte)
                if possible:
                    longer.append((text + bytes([byte]), position.after_byte(byte)))
        reached = longer if len(longer) < 2000 else longer[:: len(longer) // 1000]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 64])
@pytest.mark.parametrize("begun", [b"", "é".encode()[:1], "€".encode()[:2], "😀".encode()[:1]])
def test_a_text_of_any_length_is_valid_from_its_beginning_to_its_end(length: int, begun: bytes) -> None:
    if length < {b"": 1, b"\xc3": 1, b"\xe2\x82": 1, b"\xf0": 3}[begun]:
        return
    for seed in range(20):
        row = Draws(Sampler(1.0, seed=seed, valid_utf8=True), b"a" + begun, length)
        text = begun + bytes(row(LOGITS[seed % 5]) for _ in range(length))
        assert valid(text), text


def test_ruling_out_renormalises_exactly() -> None:
    row = Draws(Sampler(1.0, valid_utf8=True))
    expected = np.exp(LOGITS[0].astype(np.float64))
    expected[0x80:0xC2] = expected[0xF5:] = 0
    np.testing.assert_allclose(row.probabilities(LOGITS[0]), expected / expected.sum(), rtol=1e-12)


def test_no_byte_that_may_come_is_possible() -> None:
    logits = np.where(np.arange(256) < 0x80, 0.0, -np.inf)
    for temperature in (0, 1.0):
        assert Draws(Sampler(temperature, valid_utf8=True))(logits) < 0x80
        with pytest.raises(UserError, match="the model gives no probabilities"):
            Draws(Sampler(temperature, valid_utf8=True), b"\xe2")(logits)
