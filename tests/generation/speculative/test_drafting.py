"""With a drafter, each text is what it is without: whatever is guessed, and whatever the rows go through."""

import numpy as np
import pytest
import torch

from mambabyte.generation import Batch, Context, Row, Sampler, generate, read
from mambabyte.generation.speculative import Drafting, FixedLengths, NgramDrafter
from mambabyte.generation.stepping import GenericStepper, stepper_for
from mambabyte.models import ByteLM
from tests.generation.speculative.drafters import Knowing, collect, right, sometimes, wrong
from tests.models.every_model import MODELS

PROMPTS = [b"ab", b"\xff\x00 a longer prompt, a longer prompt", b"a", b"\n"]
SAMPLERS = [
    Sampler(0),
    Sampler(1.0, seed=1),
    Sampler(0.9, seed=2, top_k=9, repetition_penalty=1.3),
    Sampler(1.0, seed=2, sample=1, min_p=0.02, valid_utf8=True),
]
LENGTH = 24


def sharpened(model: ByteLM) -> ByteLM:
    """With logits far enough apart for rounding to decide nothing."""
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> ByteLM:
    torch.manual_seed(0)
    return sharpened(MODELS[request.param].build())


@pytest.fixture(scope="module")
def plain(model: ByteLM) -> list[bytes]:
    """What the model writes without a drafter."""
    return [alone(model, prompt, sampler) for prompt, sampler in zip(PROMPTS, SAMPLERS, strict=True)]


@pytest.fixture(scope="module")
def mamba() -> ByteLM:
    torch.manual_seed(0)
    return sharpened(MODELS["mambabyte"].build())


def alone(model: ByteLM, prompt: bytes, sampler: Sampler, length: int = LENGTH) -> bytes:
    return bytes(generate(model, prompt, length, sampler))


def fixed(drafter, most: int = 5) -> Drafting:
    return Drafting(drafter, lengths=FixedLengths(most))


def assert_same_context(model: ByteLM, context: Context | None, text: bytes) -> None:
    """That it is what reading the text gives, the state of convolution and scan included."""
    expected = read(model, text)
    assert context is not None
    assert (context.length, context.tail) == (expected.length, expected.tail)
    torch.testing.assert_close(context.logits, expected.logits, atol=1e-3, rtol=1e-4)  # of logits up to 100
    torch.testing.assert_close(context.state, expected.state, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("guess", [right, wrong, sometimes])
def test_what_is_written_does_not_depend_on_the_guesses(model: ByteLM, plain: list[bytes], guess) -> None:
    drafting = fixed(Knowing(plain, guess))
    batch = Batch(model, drafting=drafting)
    rows = [Row(sampler, LENGTH, keep_context=True) for sampler in SAMPLERS]
    for prompt, row in zip(PROMPTS, rows, strict=True):
        batch.add(read(model, prompt), [row])
    texts = collect(batch)
    for prompt, row, text in zip(PROMPTS, rows, plain, strict=True):
        assert texts[row] == text
        assert row.finished == "length" and row.drawn == LENGTH
        assert_same_context(model, row.context, prompt + text)
    done = drafting.statistics
    # The first 4 steps are timed without drafts. Of the 20 bytes left, three rounds take 1 + 5 each, and the
    # last 1 + 1. The byte at the end needs no draft.
    if guess is right:
        assert (done.rounds, done.drafted, done.accepted) == (4, 4 * 16, 4 * 16)
    if guess is wrong:
        assert (done.rounds, done.accepted) == (19, 0)


@pytest.mark.parametrize("lengths", [None, FixedLengths(5)], ids=["adaptive", "fixed"])
def test_what_is_looked_up_changes_nothing(model: ByteLM, lengths: FixedLengths | None) -> None:
    text = b"over and over again, over and over again, over and over"
    row, batch = Row(Sampler(0), 60), Batch(model, drafting=Drafting(NgramDrafter(), lengths=lengths))
    batch.add(read(model, text), [row])
    assert collect(batch)[row] == alone(model, text, Sampler(0), 60)


def test_rows_come_and_go_between_rounds(model: ByteLM, plain: list[bytes]) -> None:
    one, two, late = (Row(sampler, LENGTH) for sampler in (SAMPLERS[0], SAMPLERS[3], SAMPLERS[1]))
    batch = Batch(model, drafting=fixed(Knowing([plain[0], plain[3], plain[1]], sometimes)))
    batch.add(read(model, PROMPTS[0]), [one])
    batch.add(read(model, PROMPTS[3]), [two])
    texts = {row: b"" for row in (one, two, late)}
    for step in range(2 * LENGTH):
        if step == 7:
            batch.remove(one)
            batch.add(read(model, PROMPTS[1]), [late])
        for drawn in batch.step() if batch.rows else []:
            texts[drawn.row] += drawn.text
    assert batch.rows == []
    assert 7 < len(texts[one]) < LENGTH and plain[0].startswith(texts[one])
    assert [texts[two], texts[late]] == [plain[3], plain[1]]


@pytest.mark.parametrize("most", [1, 3, 20])
def test_a_stop_string_within_a_draft_ends_the_text_there(mamba: ByteLM, most: int) -> None:
    sampler = Sampler(1.0, seed=1)
    whole = alone(mamba, b"ab", sampler, 40)
    for place in range(5, 30, 3):
        stop = whole[place : place + 3]
        batch = Batch(mamba, drafting=fixed(Knowing([whole], right), most))
        row = Row(sampler, 40, [stop, b"never this"], keep_context=True)
        batch.add(read(mamba, b"ab"), [row])
        assert collect(batch)[row] == whole[:place]
        assert row.finished == "stop" and row.drawn == place + 3
        assert_same_context(mamba, row.context, b"ab" + whole[: place + 3])


def test_each_byte_comes_with_the_logits_that_it_was_drawn_from(mamba: ByteLM) -> None:
    whole = alone(mamba, b"ab", Sampler(0))
    batch = Batch(mamba, drafting=fixed(Knowing([whole], sometimes)))
    batch.add(read(mamba, b"ab"), [Row(Sampler(0), LENGTH)])
    drawn = list(batch)
    assert bytes(its.byte for its in drawn) == whole
    with torch.no_grad():
        expected = mamba(b"ab" + whole[:-1])[0, 1:]
    seen = torch.stack([torch.from_numpy(its.logits) for its in drawn])
    torch.testing.assert_close(seen, expected, atol=1e-3, rtol=1e-4)  # of logits up to 100


@pytest.mark.parametrize("name", ["mambabyte", "mambabyte-ngrams"])
def test_the_fused_step_s_windows_change_no_bit(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name].build().eval()
    if isinstance(stepper_for(model, model.initial_state(1)), GenericStepper):
        pytest.skip("the kernels are not compiled here, so that windows and steps round differently")
    sampler, whole, logits = Sampler(1.0), b"", []
    for guess in (None, right, sometimes):
        batch = Batch(model, drafting=fixed(Knowing([whole], guess)) if guess else None)
        batch.add(read(model, b"ab"), [Row(sampler, LENGTH)])
        drawn = list(batch)
        whole = bytes(its.byte for its in drawn)
        logits.append(np.stack([its.logits for its in drawn]))
    assert (logits[0] == logits[1]).all() and (logits[0] == logits[2]).all()


def test_a_step_without_a_draft_follows_accepted_ones(mamba: ByteLM) -> None:
    whole = alone(mamba, b"ab", SAMPLERS[1], 40)

    def in_bursts(text: bytes, place: int) -> int | None:
        return right(text, place) if place // 7 % 2 else None

    drafting = fixed(Knowing([whole], in_bursts))
    batch = Batch(mamba, drafting=drafting)
    row = Row(SAMPLERS[1], 40, keep_context=True)
    batch.add(read(mamba, b"ab"), [row])
    assert collect(batch)[row] == whole
    assert_same_context(mamba, row.context, b"ab" + whole)
    assert drafting.statistics.acceptance == 1 and drafting.statistics.speedup is not None
