"""Drafted sampling follows the model's distribution; with top_beta it follows that rule instead."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.generation import Batch, Row, Sampler, read
from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative import Drafting, FixedLengths, Guess, ModelDrafter
from mambabyte.models import ByteLM, MambaByteConfig
from tests.generation.speculative.drafters import collect

SAMPLES, LENGTH, PLAIN = 240, 29, 4  # the first bytes are drawn before anything is drafted
BINS = 20
CHI_SQUARE = 43.8  # of 19 degrees of freedom: exceeded by chance once in a thousand


@pytest.fixture(scope="module")
def model() -> ByteLM:
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=16, n_layer=1, d_state=4).build().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # the likeliest byte has about a quarter
    return model


class Greedy(ModelDrafter):
    """Always the likeliest byte."""

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        return super().guesses([Draws(Sampler(0)) for _ in draws])


class Peeking(ModelDrafter):
    """What the noise favours, whatever the model."""

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        for _ in range(LENGTH):
            bytes = [int(row.noise().argmin()) for row in draws]
            yield [Guess(byte, 0) for byte in bytes]
            for row, byte in zip(draws, bytes, strict=True):
                row.push(byte)


@pytest.mark.parametrize("drafter", [Greedy, Peeking])
def test_drafted_bytes_follow_the_model_s_distribution(model: ByteLM, drafter: type[ModelDrafter]) -> None:
    drafting = Drafting(drafter(model), lengths=FixedLengths(4))
    batch = Batch(model, drafting=drafting)
    rows = [Row(Sampler(1.0, sample=sample), LENGTH) for sample in range(SAMPLES)]
    batch.add(read(model, b"ab"), rows)
    texts = collect(batch)
    assert 0.005 < drafting.statistics.acceptance < 0.9
    bytes = torch.tensor([list(b"ab" + texts[row]) for row in rows])
    with torch.no_grad():
        probabilities = model(bytes)[:, 1 + PLAIN : -1].double().softmax(-1).flatten(0, 1)
    drawn = bytes[:, 2 + PLAIN :].flatten()
    # Of a byte drawn from p, the probability of all likelier ones and a random share of its own are uniform.
    own = probabilities.gather(1, drawn[:, None])
    before = torch.where(probabilities > own, probabilities, 0).sum(1)
    share = torch.rand(len(drawn), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = np.histogram((before + share * own[:, 0]).numpy(), bins=BINS, range=(0, 1))[0]
    expected = len(drawn) / BINS
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE


class ByPlace:
    """Guesses that depend on the place in the text alone."""

    def __init__(self) -> None:
        self._places: list[int] = []

    def append(self, text: bytes, rows: int) -> None:
        self._places += rows * [0]

    def select(self, rows: Sequence[int]) -> None:
        self._places = [self._places[row] for row in rows]

    def push(self, texts: Sequence[bytes]) -> None:
        self._places = [place + len(more) for place, more in zip(self._places, texts, strict=True)]

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        for ahead in range(LENGTH):
            yield [Guess(self.guess(place + ahead), 0) for place in self._places]

    @staticmethod
    def guess(place: int) -> int:
        return place * 71 % 256


@torch.no_grad()
def by_the_rule(model: ByteLM, prompt: bytes, sampler: Sampler, most: int, beta: int) -> bytes:
    """Top-beta acceptance, a byte at a time."""
    draws, text, steps = Draws(sampler, prompt, LENGTH), b"", 0
    while len(text) < LENGTH:
        text += bytes([draws(model(prompt + text)[0, -1].numpy())])
        steps += 1
        for _ in range(min(most, LENGTH - len(text)) if steps > PLAIN else 0):
            logits = model(prompt + text)[0, -1]
            guess = ByPlace.guess(len(text))
            if guess not in logits.topk(beta).indices:
                break
            draws.push(guess)
            text += bytes([guess])
    return text


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_top_beta_accepts_guesses_among_the_likeliest_bytes(model: ByteLM, temperature: float) -> None:
    drafting = Drafting(ByPlace(), most=3, acceptance="top_beta", top_beta=150)
    batch = Batch(model, drafting=drafting)
    rows = [Row(Sampler(temperature, sample=i), LENGTH, keep_context=True) for i in range(4)]
    prompts = [b"ab", b"a", b"", b"and"]
    for prompt, row in zip(prompts, rows, strict=True):
        batch.add(read(model, prompt), [row])
    texts = collect(batch)
    for prompt, row in zip(prompts, rows, strict=True):
        assert texts[row] == by_the_rule(model, prompt or b"\n", row.sampler, 3, 150)
        assert row.context is not None
        torch.testing.assert_close(row.context.state, read(model, (prompt or b"\n") + texts[row]).state)
    assert 0.3 < drafting.statistics.acceptance < 0.9


def test_top_beta_accepts_nothing_that_is_ruled_out(model: ByteLM) -> None:
    drafting = Drafting(ByPlace(), acceptance="top_beta", top_beta=256)
    batch, row = Batch(model, drafting=drafting), Row(Sampler(1.0, valid_utf8=True), LENGTH)
    batch.add(read(model, b"ab"), [row])
    collect(batch)[row].decode("utf-8")
    assert 0 < drafting.statistics.acceptance < 1


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"acceptance": "most"}, "acceptance must be exact or top_beta, not most"),
        ({"top_beta": 0}, "top_beta must be from 1 to 256, not 0"),
        ({"most": 0}, "a draft has one byte or more, not 0"),
    ):
        with pytest.raises(UserError, match=message):
            Drafting(ByPlace(), **settings)
