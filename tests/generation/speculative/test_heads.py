"""A model's own further heads as its drafter: what they read, what they guess, and that no text changes."""

from dataclasses import replace

import pytest
import torch

import mambabyte
from mambabyte.errors import UserError
from mambabyte.generation import Batch, Row, Sampler, generate, read
from mambabyte.generation.speculative import Drafting, FixedLengths, HeadsDrafter, drafting_from
from mambabyte.generation.stepping import GenericStepper, stepper_for
from mambabyte.models import ByteLM, MambaByteConfig
from mambabyte.models.megabyte import MegaByteConfig
from mambabyte.ops import use_backend
from tests.generation.speculative.drafters import collect
from tests.models.every_model import MODELS, random_bytes

# fp32 sums in another order, values of order 1
CLOSE = {"atol": 2e-5, "rtol": 0}
NAMES = ["mambabyte", "mambabyte-ngrams", "transformer-window", "megabyte", "perceiver_ar", "lstm", "ssd"]
NAMES += ["spacebyte", "hnet-2-stages"]
SAMPLERS = [
    Sampler(0),
    Sampler(1.0, seed=1),
    Sampler(0.9, seed=2, top_k=9, repetition_penalty=1.3),
    Sampler(1.0, seed=2, sample=1, min_p=0.02, valid_utf8=True),
]
PROMPTS = [b"ab", b"\xff\x00 a longer prompt, a longer prompt", b"a", b"\n"]
LENGTH = 24
PERIOD = b"periodic text: "


def likely_right(config, heads: int = 4) -> ByteLM:
    """A model with logits far enough apart for rounding to decide nothing, whose further heads are often
    right: they are the next byte's, and this model repeats itself."""
    torch.manual_seed(0)
    model = replace(config, prediction_heads=heads).build()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        model.further_heads.weight.copy_(model.lm_head.weight.repeat(heads - 1, 1))
    return model.eval()


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> ByteLM:
    return likely_right(MODELS[request.param])


def fixed(model: ByteLM, most: int = 5) -> Drafting:
    return Drafting(HeadsDrafter(model), lengths=FixedLengths(most))


def alone(model: ByteLM, prompt: bytes, sampler: Sampler, length: int = LENGTH) -> bytes:
    return bytes(generate(model, prompt, length, sampler))


@pytest.mark.parametrize("lengths", ["fixed", "adaptive"])
def test_the_text_is_that_of_plain_decoding(model: ByteLM, lengths: str) -> None:
    drafting = fixed(model) if lengths == "fixed" else drafting_from("heads", model)
    batch = Batch(model, drafting=drafting)
    rows = [Row(sampler, LENGTH) for sampler in SAMPLERS]
    for prompt, row in zip(PROMPTS, rows, strict=True):
        batch.add(read(model, prompt), [row])
    texts = collect(batch)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert texts[row] == alone(model, prompt, row.sampler)
    if lengths == "fixed":
        assert drafting.statistics.drafted > 0


def test_rows_come_and_go_between_rounds(model: ByteLM) -> None:
    batch = Batch(model, drafting=fixed(model))
    first, second, late = (Row(sampler, LENGTH) for sampler in SAMPLERS[:3])
    batch.add(read(model, PROMPTS[0]), [first])
    batch.add(read(model, PROMPTS[1]), [second])
    texts = {row: b"" for row in (first, second, late)}
    for step in range(2 * LENGTH):
        if step == 7:
            batch.remove(first)
            batch.add(read(model, PROMPTS[2]), [late])
        for drawn in batch.step() if batch.rows else []:
            texts[drawn.row] += drawn.text
    assert batch.rows == []
    assert alone(model, PROMPTS[0], SAMPLERS[0]).startswith(texts[first])
    assert texts[second] == alone(model, PROMPTS[1], SAMPLERS[1])
    assert texts[late] == alone(model, PROMPTS[2], SAMPLERS[2])


@torch.no_grad()
def test_a_stepper_keeps_what_the_heads_read(model: ByteLM) -> None:
    keeps_what_the_heads_read(model)


@torch.no_grad()
def test_the_reference_keeps_what_the_heads_read() -> None:
    with use_backend("reference"):
        keeps_what_the_heads_read(likely_right(MODELS["mambabyte-ngrams"]))


def keeps_what_the_heads_read(model: ByteLM) -> None:
    bytes = random_bytes(2, 20)
    _, state = model.prefill(bytes[:, :6])
    expected = model.hidden(bytes)
    stepper, plain = stepper_for(model, state, keep_hidden=True), stepper_for(model, state)
    assert torch.equal(stepper(bytes[:, 6]), plain(bytes[:, 6]))
    assert torch.allclose(stepper.hidden, expected[:, 6], **CLOSE)
    assert torch.equal(stepper.window(bytes[:, 7:12]), plain.window(bytes[:, 7:12]))
    assert torch.allclose(stepper.hidden, expected[:, 7:12], **CLOSE)
    stepper.keep([5, 2])  # of different lengths from here on
    stepper.window(torch.stack([bytes[0, 12:15], bytes[1, 9:12]]))
    assert torch.allclose(stepper.hidden[0], expected[0, 12:15], **CLOSE)
    assert torch.allclose(stepper.hidden[1], expected[1, 9:12], **CLOSE)
    assert plain.hidden is None


@torch.no_grad()
def test_rounded_weights_keep_it_too() -> None:
    model, bytes = likely_right(MODELS["mambabyte"]), random_bytes(1, 8)
    state = model.prefill(bytes[:, :4])[1]
    stepper = stepper_for(model, state)
    if isinstance(stepper, GenericStepper):
        pytest.skip("the kernels are not compiled here")
    rounded = stepper_for(model, state, "bf16", keep_hidden=True)
    rounded(bytes[:, 4])
    # eight bits, through two layers, of values of order 1
    assert torch.allclose(rounded.hidden, model.hidden(bytes)[:, 4], atol=0.05, rtol=0)


def learnt(config) -> ByteLM:
    """A model that has learnt a periodic text."""
    torch.manual_seed(0)
    model = config.build()
    bytes = torch.tensor([list(PERIOD * 6)])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nats, auxiliary = model.training_loss(bytes[:, :-1], bytes[:, 1:])
        (nats.mean() + auxiliary).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        MambaByteConfig(d_model=32, n_layer=1, d_state=4, prediction_heads=5),
        MegaByteConfig(
            patch_size=4, max_length=256, d_model=32, n_layer=1, n_head=2, local_d_model=32, local_n_layer=1,
            local_n_head=2, initializer_std=0.05, embedding_std=0.3, prediction_heads=5,
        ),
    ],
    ids=["mambabyte", "megabyte"],
)  # fmt: skip
def test_heads_that_have_learnt_a_periodic_text_guess_right(config) -> None:
    model = learnt(config)
    with torch.no_grad():
        guessed = model.further_logits(model.hidden(PERIOD * 3))[0, 20:40].argmax(-1)
    coming = torch.tensor([list(PERIOD * 5)])[0]
    for head in range(4):
        assert torch.equal(guessed[:, head], coming[22 + head : 42 + head])
    drafting = fixed(model)
    batch, row = Batch(model, drafting=drafting), Row(Sampler(0), 45)
    batch.add(read(model, PERIOD * 2), [row])
    assert collect(batch)[row] == PERIOD * 3
    done = drafting.statistics
    # After four steps that are timed without drafts, each gives a byte and the heads' four; but the last,
    # which has no byte left to guess.
    assert (done.rounds, done.drafted, done.acceptance) == (8, 32, 1)


@pytest.mark.parametrize("sampler", SAMPLERS[:2], ids=["greedy", "sampled"])
def test_no_guess_is_read_beyond_a_models_last_position(sampler: Sampler) -> None:
    model = likely_right(replace(MODELS["spacebyte"], max_length=40))
    batch = Batch(model, drafting=fixed(model))
    # The last byte that is drawn is not read; the other row's drafts are longer than what is left.
    lengths = {b"twenty characters, a": 21, b"ab": 30}
    rows = {prompt: Row(sampler, length) for prompt, length in lengths.items()}
    for prompt, row in rows.items():
        batch.add(read(model, prompt), [row])
    texts = collect(batch)
    for prompt, row in rows.items():
        assert texts[row] == alone(model, prompt, sampler, lengths[prompt])


def test_from_python() -> None:
    model = likely_right(MODELS["lstm"])
    plain, drafted = (mambabyte.generate(model, b"ab", bytes=30, draft=draft) for draft in (None, "heads"))
    assert plain == drafted and len(plain) == 30


def test_where_the_model_has_read_nothing_yet_there_is_no_guess() -> None:
    model = likely_right(MODELS["lstm"])
    drafter = HeadsDrafter(model)
    drafter.append(b"text", 2)
    assert list(drafter.guesses([])) == []


def test_heads_without_probabilities_guess_nothing() -> None:
    model = likely_right(MODELS["lstm"])
    with torch.no_grad():
        model.further_heads.weight[3] = torch.nan
    drafting = fixed(model)
    batch, row = Batch(model, drafting=drafting), Row(SAMPLERS[2], LENGTH)
    batch.add(read(model, b"ab"), [row])
    assert collect(batch)[row] == alone(model, b"ab", SAMPLERS[2])
    assert drafting.statistics.drafted == 0


def test_a_model_without_further_heads_is_refused() -> None:
    plain = MODELS["lstm"].build()
    with pytest.raises(
        UserError, match=r"which this model has not: train one with model\.prediction_heads=4"
    ):
        drafting_from("heads", plain)
    with pytest.raises(ValueError, match="heads draft for the model that they are of"):
        Batch(plain, drafting=fixed(likely_right(MODELS["lstm"])))


def test_the_reference_reads_as_the_fused_step_does() -> None:
    model = likely_right(MODELS["mambabyte"])
    with use_backend("reference"):
        batch, row = Batch(model, drafting=fixed(model)), Row(SAMPLERS[1], LENGTH)
        batch.add(read(model, b"ab"), [row])
        assert collect(batch)[row] == alone(model, b"ab", SAMPLERS[1])
