"""Steppers against the forward pass over each row's own text, whatever the rows have been through."""

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.generation import stepping
from mambabyte.generation.stepping import GenericStepper, stepper_for
from mambabyte.models.byte_lm import ByteLM
from mambabyte.ops import use_backend
from tests.models.every_model import MODELS

# fp32 sums in another order, logits of order 1
CLOSE = {"atol": 3e-5, "rtol": 0}


@pytest.fixture(params=MODELS)
def model(request) -> ByteLM:
    torch.manual_seed(0)
    model = MODELS[request.param].build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "A_log" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


class Rows:
    """A stepper, and beside it the text of each row."""

    def __init__(self, model: ByteLM, prompts: torch.Tensor) -> None:
        self.model, self.random = model, torch.Generator().manual_seed(1)
        self.texts = prompts.tolist()
        self.step = stepper_for(model, self.prefilled(prompts))

    @torch.no_grad()
    def prefilled(self, prompts: torch.Tensor) -> list:
        return self.model.prefill(prompts)[1]

    def bytes(self, *shape: int) -> torch.Tensor:
        return torch.randint(0, 256, (len(self.texts), *shape), generator=self.random)

    @torch.no_grad()
    def expect(self, logits: torch.Tensor) -> None:
        """That these are the last ones of each text, or the last few of each."""
        logits = logits if logits.ndim == 3 else logits.unsqueeze(1)
        assert len(logits) == len(self.texts)
        for text, row in zip(self.texts, logits, strict=True):
            torch.testing.assert_close(row, self.model(torch.tensor([text]))[0, -len(row) :], **CLOSE)

    def reads(self, bytes: torch.Tensor) -> None:
        for text, more in zip(self.texts, bytes.view(len(bytes), -1).tolist(), strict=True):
            text += more

    def one(self) -> None:
        byte = self.bytes()
        self.reads(byte)
        self.expect(self.step(byte))

    def read(self, length: int) -> None:
        bytes = self.bytes(length)
        self.reads(bytes)
        self.expect(self.step.read(bytes))

    def window(self, length: int, counts: list[int] | None = None) -> None:
        bytes = self.bytes(length)
        self.reads(bytes)
        self.expect(self.step.window(bytes))
        if counts is not None:
            self.step.keep(counts)
            for text, count in zip(self.texts, counts, strict=True):
                del text[len(text) - length + count :]

    def select(self, rows: list[int]) -> None:
        self.step.select(rows)
        self.texts = [list(self.texts[row]) for row in rows]

    def append(self, prompts: torch.Tensor) -> None:
        self.step.append(self.prefilled(prompts))
        self.texts += prompts.tolist()


def test_rows_go_on_from_what_each_of_them_kept(model: ByteLM) -> None:
    rows = Rows(model, torch.randint(0, 256, (3, 6), generator=torch.Generator().manual_seed(0)))
    rows.one()
    rows.window(5, [2, 0, 5])
    rows.one()
    rows.window(4, [0, 0, 0])
    rows.window(1, [1, 0, 1])
    rows.window(3)  # kept whole, as nothing else is said
    rows.window(9, [9, 9, 9])
    rows.window(2, [1, 2, 0])
    rows.read(3)
    assert rows.step.rows() == 3


def test_rows_come_and_go(model: ByteLM) -> None:
    rows = Rows(model, torch.randint(0, 256, (2, 5), generator=torch.Generator().manual_seed(0)))
    rows.window(4, [1, 3])
    rows.select([1, 0, 1])  # two samples of one row
    rows.one()
    rows.append(torch.tensor([[7, 8], [9, 10]]))
    rows.window(3, [3, 0, 1, 2, 3])
    rows.one()
    rows.select([4, 2])
    rows.one()
    rows.select([])
    with pytest.raises(ValueError, match="there are no rows"):
        rows.step(torch.empty(0, dtype=torch.int64))
    rows.append(torch.tensor([[1, 2, 3]]))
    rows.window(2, [1])
    rows.one()


def test_a_state_is_a_copy_of_what_it_was(model: ByteLM) -> None:
    rows, other = (
        Rows(model, torch.randint(0, 256, (3, 6), generator=torch.Generator().manual_seed(0))) for _ in "ab"
    )
    rows.window(4, [1, 3, 1])
    other.texts = [list(rows.texts[2]), list(rows.texts[0])]
    other.step = stepper_for(model, rows.step.state([2, 0]))
    rows.one()
    other.one()
    other.window(2, [0, 1])
    rows.one()
    for layer in rows.step.state([1]):
        for tensor in layer:
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            tensor.zero_()
    rows.one()


def test_pythons_bytes_are_taken(model: ByteLM) -> None:
    rows = Rows(model, torch.tensor([[1, 2]]))
    for length, call in ((1, rows.step), (3, rows.step.window), (2, rows.step.read)):
        more = b"abc"[:length]
        rows.texts[0] += more
        rows.expect(call(more))


def test_long_texts_are_read_in_chunks(model: ByteLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "READ_BYTES", 7)
    rows = Rows(model, torch.tensor([[1], [2]]))
    lengths = []
    monkeypatch.setattr(model, "prefill", lambda bytes, state, prefill=model.prefill: (
        lengths.append(bytes.shape[1]), prefill(bytes, state))[1])  # fmt: skip
    rows.step = GenericStepper(model, rows.step.state())
    rows.read(24)
    rows.one()
    assert max(lengths) == 7


def test_what_does_not_fit_is_refused_and_changes_nothing(model: ByteLM) -> None:
    rows = Rows(model, torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(ValueError, match="no window"):
        rows.step.keep([0, 0])
    rows.window(3)
    for counts in ([1], [1, 4], [-1, 0]):
        with pytest.raises(ValueError, match="each of 2 rows keeps from 0 to 3 bytes"):
            rows.step.keep(counts)
    for wrong in ([2], [-1]):
        with pytest.raises(ValueError, match="rows are from 0 to 1"):
            rows.step.select(wrong)
        with pytest.raises(ValueError, match="rows are from 0 to 1"):
            rows.step.state(wrong)
    with pytest.raises(ValueError, match="there are 2 rows, and bytes for 1 were given"):
        rows.step(torch.tensor([1]))
    with pytest.raises(UserError, match="0 to 255"):
        rows.step.window(torch.tensor([[1, 256], [1, 2]]))
    rows.one()
    with pytest.raises(ValueError, match="no window"):
        rows.step.keep([0, 0])


def test_a_mambabyte_that_its_kernel_does_not_serve_is_stepped_all_the_same() -> None:
    torch.manual_seed(0)
    model = MODELS["mambabyte-ngrams"].build().eval()
    with use_backend("reference"):
        rows = Rows(model, torch.tensor([[1, 2], [3, 4]]))
        assert isinstance(rows.step, GenericStepper)
        rows.window(3, [1, 2])
        rows.one()
        with pytest.raises(UserError, match="weights=bf16 needs"):
            stepper_for(model, rows.step.state(), "bf16")
    step = stepper_for(model, rows.step.state(), "bf16")
    assert not isinstance(step, GenericStepper)
    logits, exact = step(torch.tensor([1, 2])), stepper_for(model, rows.step.state())(torch.tensor([1, 2]))
    assert 0 < (logits - exact).abs().max() < 0.05  # rounded


def test_weights_that_are_not_to_be_had_are_refused() -> None:
    model = MODELS["lstm"].build().eval()
    for weights, message in (("int8", "weights=int8 needs a Mamba"), ("fp16", "weights must be fp32")):
        with pytest.raises(UserError, match=message):
            stepper_for(model, model.initial_state(1), weights)
