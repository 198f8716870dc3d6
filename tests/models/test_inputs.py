"""What a model is given is checked before PyTorch complains of it, or computes with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.models import ByteLM, LSTMConfig, MambaByteConfig
from tests.models.every_model import MODELS

BATCH = [list(b"ab"), list(b"cd"), list(b"ef")]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> ByteLM:
    torch.manual_seed(0)
    return MODELS[request.param].build().eval()


def batch(**kind: torch.dtype) -> torch.Tensor:
    return torch.tensor(BATCH, **kind)


@pytest.mark.parametrize("value", [-1, 256, 2**40])
@torch.no_grad()
def test_what_is_no_byte_is_a_sentence_everywhere(model: ByteLM, value: int) -> None:
    wrong, state = batch(), model.prefill(batch())[1]
    wrong[1, 0] = value
    for call in (model, model.prefill, lambda data: model.step(data[:, 0], state)):
        with pytest.raises(UserError, match=f"bytes are from 0 to 255, and these hold {value}"):
            call(wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            batch(dtype=torch.float32),
            "a model reads bytes or .* not torch.float32 of shape",
        ),
        (batch(dtype=torch.bool), "a model reads bytes or an integer tensor .* not torch.bool"),
        (batch(dtype=torch.complex64), "a model reads bytes or an integer tensor .* not torch.complex64"),
        (batch()[0], r"not torch.int64 of shape \(2,\)"),
        (batch()[None], r"not torch.int64 of shape \(1, 3, 2\)"),
        (BATCH, "not list: give it bytes"),
        ([1, 256], "not list: give it bytes"),
        (5, "not int: give it bytes"),
        (batch().numpy(), "not ndarray: give it bytes"),
        (None, "not NoneType"),
        (b"", "one byte or more"),
        (batch()[:, :0], "one byte or more"),
    ],
    ids=str,
)
def test_what_is_no_batch_of_bytes_is_a_sentence(model: ByteLM, wrong: object, sentence: str) -> None:
    for call in (model, model.prefill):
        with pytest.raises(UserError, match=sentence):
            call(wrong)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3), batch(), torch.tensor(1), "abc", [1, 2, 3], 65, None], ids=str
)
@torch.no_grad()
def test_what_is_no_next_byte_is_a_sentence(model: ByteLM, wrong: object) -> None:
    with pytest.raises(UserError, match=r"a (step|model) reads bytes"):
        model.step(wrong, model.initial_state(3))


@pytest.mark.parametrize("learning", [False, True])
def test_a_step_takes_pythons_bytes_one_for_each_row(model: ByteLM, learning: bool) -> None:
    with torch.set_grad_enabled(learning):
        state = model.prefill(batch())[1]
        expected = model.step(torch.tensor(list(b"xyz")), state)[0]
        assert torch.equal(model.step(b"xyz", state)[0], expected)
        with pytest.raises(UserError, match="no state of this model for a batch of 2"):
            model.step(b"xy", state)


@pytest.mark.parametrize(
    "other",
    [
        lambda model: model.initial_state(2),
        lambda model: model.prefill(b"abc")[1],
        lambda model: model.initial_state(3)[:-1],
        lambda model: [tuple(part[..., None] for part in parts) for parts in model.initial_state(3)],
        lambda model: [tuple(None for _ in parts) for parts in model.initial_state(3)],
        lambda _: MambaByteConfig(d_model=48, n_layer=2).build().initial_state(3),
        lambda _: LSTMConfig(d_model=31, n_layer=2).build().initial_state(3),
        lambda _: (),
        lambda _: torch.zeros(3),
        lambda _: "state",
    ],
)
@torch.no_grad()
def test_a_state_of_another_batch_or_model_is_a_sentence(model: ByteLM, other: Callable) -> None:
    state = other(model)
    calls = (model, model.prefill, lambda data, state: model.step(data[:, 0], state))
    for call in calls:
        with pytest.raises(UserError, match="this is no state of this model for a batch of 3"):
            call(batch(), state)


@pytest.mark.parametrize(
    "marks", [torch.zeros(3, 1, dtype=torch.bool), torch.zeros(3, 2), [[True, False]] * 3], ids=str
)
def test_marks_of_another_shape_or_type_are_a_sentence(model: ByteLM, marks: object) -> None:
    with pytest.raises(UserError, match=r"document_start must be a boolean tensor of shape \(3, 2\)"):
        model(batch(), document_start=marks)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
@torch.no_grad()
def test_every_integer_tensor_is_read(model: ByteLM, kind: torch.dtype) -> None:
    assert torch.equal(model(batch(dtype=kind)), model(batch()))
