"""A smaller model as the drafter, which goes back where the text goes on differently than it guessed."""

import logging
from collections.abc import Iterator, Sequence

import pytest
import torch

from mambabyte.generation import Batch, Row, Sampler, read
from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative import Drafting, FixedLengths, Guess, ModelDrafter
from mambabyte.models import ByteLM, MegaByteConfig
from tests.generation.speculative.drafters import collect
from tests.generation.speculative.test_drafting import LENGTH, PROMPTS, SAMPLERS, alone, fixed, sharpened
from tests.models.every_model import MODELS


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> ByteLM:
    torch.manual_seed(0)
    return sharpened(MODELS[request.param].build())


def built(name: str, seed: int = 1) -> ByteLM:
    torch.manual_seed(seed)
    return sharpened(MODELS[name].build())


def batch_of_all(model: ByteLM, drafting: Drafting) -> tuple[Batch, list[Row]]:
    batch, rows = Batch(model, drafting=drafting), [Row(sampler, LENGTH) for sampler in SAMPLERS]
    for prompt, row in zip(PROMPTS, rows, strict=True):
        batch.add(read(model, prompt), [row])
    return batch, rows


def assert_plain(model: ByteLM, rows: list[Row], texts: dict[Row, bytes]) -> None:
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert texts[row] == alone(model, prompt, row.sampler)


def test_all_that_the_same_model_guesses_is_right(model: ByteLM) -> None:
    drafting = fixed(ModelDrafter(model))
    batch, rows = batch_of_all(model, drafting)
    assert_plain(model, rows, collect(batch))
    # As for guesses that are known to be right: what a row drew depends on the noise, which both share.
    assert (drafting.statistics.rounds, drafting.statistics.acceptance) == (4, 1)


@pytest.mark.parametrize("name", ["mambabyte-ngrams", "transformer", "lstm"])
def test_another_model_s_guesses_change_nothing(name: str) -> None:
    model, drafter = built("mambabyte", 0), built(name)
    batch, rows = batch_of_all(model, fixed(ModelDrafter(drafter)))
    assert_plain(model, rows, collect(batch))


class Misled(ModelDrafter):
    """Changes some of its guesses, of each row others, so that it must go back. Their kind says so."""

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        for place, guesses in enumerate(super().guesses(draws)):
            changed = [(row + place + its.position) % 3 == 0 for row, its in enumerate(draws)]
            yield [
                Guess((guess.byte + change) % 256, int(change))
                for guess, change in zip(guesses, changed, strict=True)
            ]


class Told(FixedLengths):
    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.told: set[tuple[int, bool]] = set()

    def tell(self, kind: int, right: bool) -> None:
        self.told.add((kind, right))


def test_after_wrong_guesses_it_goes_on_from_the_text(model: ByteLM) -> None:
    lengths = Told(4)
    batch, rows = batch_of_all(model, Drafting(Misled(model), lengths=lengths))
    assert_plain(model, rows, collect(batch))
    # All that it did not change is right: its states are those of the text, in each row.
    assert lengths.told == {(0, True), (1, False)}


def test_rows_come_and_go_between_rounds(model: ByteLM) -> None:
    drafting = fixed(ModelDrafter(model), 3)
    batch = Batch(model, drafting=drafting)
    one, two, late = (Row(sampler, LENGTH) for sampler in (SAMPLERS[0], SAMPLERS[3], SAMPLERS[1]))
    batch.add(read(model, PROMPTS[0]), [one])
    batch.add(read(model, PROMPTS[3]), [two])
    texts = {row: b"" for row in (one, two, late)}
    for step in range(2 * LENGTH):
        if step == 6:
            batch.remove(one)
            batch.add(read(model, PROMPTS[1]), [late])
        for drawn in batch.step() if batch.rows else []:
            texts[drawn.row] += drawn.text
    assert texts[two] == alone(model, PROMPTS[3], SAMPLERS[3])
    assert texts[late] == alone(model, PROMPTS[1], SAMPLERS[1])
    assert drafting.statistics.acceptance == 1


def test_a_drafter_that_cannot_go_on_leaves_the_text_to_the_model(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    shape = {"patch_size": 4, "d_model": 16, "n_head": 2, "local_d_model": 8, "local_n_head": 2, "n_layer": 1}
    short, model = MegaByteConfig(max_length=16, **shape).build(), built("mambabyte", 0)
    for prompt in (b"ab", b"a prompt that is too long for it"):
        caplog.clear()
        row, batch = Row(Sampler(1.0), LENGTH), Batch(model, drafting=fixed(ModelDrafter(short)))
        with caplog.at_level(logging.WARNING, "mambabyte"):
            batch.add(read(model, prompt), [row])
            assert collect(batch)[row] == alone(model, prompt, Sampler(1.0))
        (record,) = caplog.records
        assert record.message.startswith("going on without the drafter: this MegaByte has positions for 16")


def test_while_nobody_asks_it_reads_nothing() -> None:
    model = built("lstm")
    drafter = ModelDrafter(model)
    drafter.append(b"a", 1)
    for _ in range(600):
        drafter.push([b"bc"])
    (guess,) = next(drafter.guesses([Draws(Sampler(0))]))
    assert guess is not None and guess.byte == alone(model, b"a" + 600 * b"bc", Sampler(0), 1)[0]
