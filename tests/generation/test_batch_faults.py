"""Batches that something goes wrong with: nothing changes, or nothing goes on."""

from collections.abc import Callable

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.generation import Batch, Row, Sampler, generate, read
from mambabyte.generation.speculative import Drafting, FixedLengths
from mambabyte.models import ByteLM
from tests.generation.speculative.drafters import Knowing, collect, right
from tests.models.every_model import MODELS


def built(name: str = "mambabyte") -> ByteLM:
    torch.manual_seed(0)
    return MODELS[name].build().eval()


@pytest.fixture
def model() -> ByteLM:
    return built()


def knowing(model: ByteLM) -> Callable[[], Drafting]:
    text = bytes(generate(model, b"ab", 30, Sampler(0)))
    return lambda: Drafting(Knowing([text] * 9, right), lengths=FixedLengths(4))


@pytest.mark.parametrize("drafted", [False, True])
def test_after_a_step_that_failed_nothing_goes_on(model: ByteLM, drafted: bool, monkeypatch) -> None:
    batch = Batch(model, drafting=knowing(model)() if drafted else None)
    row = Row(Sampler(0), 30, keep_context=True)
    batch.add(read(model, b"ab"), [row])
    for _ in range(5):  # into the rounds with drafts
        batch.step()
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_stepper", None)  # which draws a byte, and cannot read it
        with pytest.raises((TypeError, AttributeError)):
            batch.step()
    for call in (batch.step, lambda: batch.remove(row), lambda: batch.add(read(model, b"ab"), [row])):
        with pytest.raises(RuntimeError, match="a step of this batch has failed: begin another one"):
            call()
    assert row.context is None


@pytest.mark.parametrize("name", ["mambabyte", "transformer"])
def test_a_context_of_another_model_changes_nothing(name: str) -> None:
    model, other = built(name), built("lstm")
    batch, row = Batch(model), Row(Sampler(1.0), 12)
    batch.add(read(model, b"ab"), [row])
    with pytest.raises(UserError, match="this is no state of this model"):
        batch.add(read(other, b"ab"), [Row(Sampler(0), 12)])
    assert collect(batch) == {row: bytes(generate(model, b"ab", 12, Sampler(1.0)))}


def test_a_drafter_serves_again_after_a_text_that_was_left(model: ByteLM) -> None:
    drafting = knowing(model)()
    for _ in range(3):
        text = generate(model, b"ab", 30, Sampler(0), drafting=drafting)
        assert bytes(next(text) for _ in range(25)) == bytes(generate(model, b"ab", 25, Sampler(0)))


def test_rows_that_keep_no_context_have_none_after_drafts(model: ByteLM) -> None:
    batch, rows = Batch(model, drafting=knowing(model)()), [Row(Sampler(0), 30) for _ in range(2)]
    batch.add(read(model, b"ab"), rows)
    collect(batch)
    assert [row.context for row in rows] == [None, None]
