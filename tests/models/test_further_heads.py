"""Heads for the bytes after the next one: their targets and loss, and that they change nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.models import (
    ByteLM,
    ByteLMConfig,
    FlopsPerByte,
    LSTMConfig,
    MambaByteConfig,
    TransformerConfig,
    config_from_dict,
)
from mambabyte.models.byte_lm import NOT_SCORED, TrainingLoss, further_targets, target_nats
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.models.lora import add_adapters, merged
from mambabyte.models.training_flops import training_flops_per_byte
from mambabyte.training.planning.memory_estimate import MemoryBudget
from mambabyte.training.settings import TrainSettings
from tests.models.every_model import MODELS, random_bytes

# fp32 sums in another order, logits of order 1
CLOSE = {"atol": 2e-5, "rtol": 0}
SOME = ["mambabyte-ngrams", "transformer", "megabyte", "perceiver_ar", "lstm", "cnn", "ssd", "attention"]


def with_heads(name: str, heads: int = 4, seed: int = 0) -> ByteLM:
    torch.manual_seed(seed)
    return replace(MODELS[name], prediction_heads=heads).build()


@pytest.fixture(params=SOME)
def model(request) -> ByteLM:
    return with_heads(request.param)


def packed(rows: int = 2, length: int = 41) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes, targets and marks of windows of several documents, of which the last row ends early."""
    data = random_bytes(rows, length + 1)
    bytes, targets = data[:, :-1], data[:, 1:].to(torch.int16)
    marks = torch.zeros(rows, length, dtype=torch.bool)
    marks[0, [0, 1, 20, 22]] = marks[1, [13, length - 1]] = True
    targets[0, [0, 19, 21]] = targets[1, [12, length - 2]] = NOT_SCORED
    targets[1, 30:] = NOT_SCORED
    return bytes, targets, marks


def naive_targets(targets: Tensor, marks: Tensor | None, heads: int) -> list[list[list[int]]]:
    """For each row, place and head 2, 3, .., looked up one by one."""
    rows, length = targets.shape
    found = [[[NOT_SCORED] * heads for _ in range(length)] for _ in range(rows)]
    for row in range(rows):
        for place in range(length):
            for ahead in range(1, heads + 1):
                between = range(place + 1, place + ahead + 1)
                if place + ahead >= length:
                    continue
                if marks is not None and any(bool(marks[row, other]) for other in between):
                    continue
                found[row][place][ahead - 1] = int(targets[row, place + ahead])
    return found


@pytest.mark.parametrize("heads", [1, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 41])
def test_a_target_is_never_in_another_document_nor_beyond_the_window(heads: int, length: int) -> None:
    _, targets, marks = (part[:, :length] for part in packed())
    for given in (None, marks):
        found = further_targets(targets, given, heads)
        assert found.tolist() == naive_targets(targets, given, heads)
    assert torch.equal(further_targets(targets, marks.numpy(), heads), found)
    assert isinstance(marks.numpy(), np.ndarray)


def test_the_loss_and_its_gradients_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    config = LSTMConfig(d_model=8, n_layer=1, prediction_heads=4, further_heads_weight=0.3)
    model = config.build().double()
    bytes, targets, marks = packed()
    nats, auxiliary = model.training_loss(bytes, targets, marks)
    assert auxiliary is not None
    gradients = torch.autograd.grad(auxiliary, list(model.parameters()), allow_unused=True)
    hidden = model.hidden(bytes, document_start=marks)
    heads = model.further_heads.weight.view(3, 256, 8)
    total = torch.zeros((), dtype=torch.float64)
    for row, places in enumerate(naive_targets(targets, marks, 3)):
        for place, its in enumerate(places):
            for head, target in enumerate(its):
                if target != NOT_SCORED:
                    total = total + cross_entropy(heads[head] @ hidden[row, place], torch.tensor(target))
    scored = int((targets != NOT_SCORED).sum())
    expected = 0.3 * total / (3 * scored)
    torch.testing.assert_close(auxiliary, expected, atol=0, rtol=1e-12)
    naive = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    for (name, _), ours, theirs in zip(model.named_parameters(), gradients, naive, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-10)
    torch.testing.assert_close(nats.sum(), _next_bytes_nats(model, bytes, targets, marks), atol=0, rtol=1e-12)


def _next_bytes_nats(model: ByteLM, bytes: Tensor, targets: Tensor, marks: Tensor | None) -> Tensor:
    logits = model(bytes, document_start=marks).flatten(0, 1)
    return cross_entropy(logits, targets.long().flatten(), reduction="sum")


def test_a_step_minimises_the_same_however_its_windows_are_split(model: ByteLM) -> None:
    bytes, targets, marks = packed()

    def minimised(rows: slice) -> Tensor:
        nats, auxiliary = model.training_loss(bytes[rows], targets[rows], marks[rows])
        return nats.sum() + auxiliary * (targets[rows] != NOT_SCORED).sum()

    parts = minimised(slice(0, 1)) + minimised(slice(1, 2))
    torch.testing.assert_close(minimised(slice(0, 2)), parts, atol=0, rtol=1e-5)


def test_windows_without_any_target_have_a_loss_of_zero(model: ByteLM) -> None:
    bytes = random_bytes(2, 1)
    nats, auxiliary = model.training_loss(bytes, torch.full((2, 1), NOT_SCORED))
    (nats.sum() + auxiliary).backward()
    assert nats.sum() == auxiliary == 0


@pytest.mark.parametrize("name", MODELS)
def test_further_heads_change_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    plain, model, bytes = MODELS[name].build(), with_heads(name), random_bytes(2, 19)
    weights = model.state_dict()
    further = weights.pop("further_heads.weight")
    assert further.shape == (3 * 256, plain.lm_head.in_features)
    assert weights.keys() == plain.state_dict().keys()
    assert all(map(torch.equal, weights.values(), plain.state_dict().values()))
    assert model.num_parameters() == plain.num_parameters() + further.numel()
    assert [type(block) for block in model.blocks()] == [type(block) for block in plain.blocks()]
    with torch.no_grad():
        assert torch.equal(model(bytes), plain(bytes))
        assert torch.equal(model.lm_head(model.hidden(bytes)), plain(bytes))
        assert torch.equal(model.prefill(bytes)[0], plain.prefill(bytes)[0])
        state = plain.prefill(bytes)[1]
        assert torch.equal(model.step(bytes[:, 3], state)[0], plain.step(bytes[:, 3], state)[0])


def test_one_head_trains_as_the_next_byte_alone_to_the_bit(model: ByteLM) -> None:
    bytes, targets, marks = packed()
    weights = []
    for whole in (True, False):
        torch.manual_seed(0)
        model = replace(model.config, prediction_heads=1).build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            loss = TrainingLoss(target_nats(model(bytes, document_start=marks), targets))
            if whole:
                loss = model.training_loss(bytes, targets, marks)
            assert loss.auxiliary is None
            loss.nats.sum().backward()
            optimizer.step()
        weights.append([loss.nats.detach(), *model.state_dict().values()])
    assert all(map(torch.equal, *weights))
    assert "further_heads.weight" not in model.state_dict()


@torch.no_grad()
def test_what_the_heads_read_sees_no_later_byte_and_splits_anywhere(model: ByteLM) -> None:
    bytes = random_bytes(2, 23)
    whole = model.further_logits(model.hidden(bytes))
    assert whole.shape == (2, 23, 3, 256)
    other = bytes.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 256
    assert torch.allclose(model.further_logits(model.hidden(other))[:, :9], whole[:, :9], **CLOSE)
    first, state = model.prefill_hidden(bytes[:, :9])
    second, _ = model.prefill_hidden(bytes[:, 9:], state)
    assert torch.allclose(model.further_logits(torch.cat([first, second], 1)), whole, **CLOSE)


def test_packed_documents_have_the_losses_of_each_alone(model: ByteLM) -> None:
    bytes, targets, marks = packed()
    parts = [[(0, 1), (1, 20), (20, 22), (22, 41)], [(0, 13), (13, 40), (40, 41)]]
    alone = torch.zeros(())
    for row, spans in enumerate(parts):
        for first, last in spans:
            here = (slice(row, row + 1), slice(first, last))
            auxiliary = model.training_loss(bytes[here], targets[here])[1]
            alone = alone + auxiliary * (targets[here] != NOT_SCORED).sum().clamp(min=1)
    together = model.training_loss(bytes, targets, marks)[1] * (targets != NOT_SCORED).sum()
    torch.testing.assert_close(together, alone, atol=0, rtol=1e-5)


def test_all_heads_are_trained_saved_and_loaded(model: ByteLM, tmp_path) -> None:
    bytes = torch.arange(256).roll(5).repeat(2, 2)
    nats, auxiliary = model.training_loss(bytes[:, :-1], bytes[:, 1:])
    (nats.mean() + auxiliary).backward()
    assert (model.further_heads.weight.grad.abs().sum(-1) > 0).all(), "a byte that a head does not train"
    assert auxiliary.item() == pytest.approx(math.log(256), abs=0.3), "a fresh head is near uniform"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
    checkpoints.write_export(model, None, 0, tmp_path / "model")
    loaded = checkpoints.load_model(tmp_path / "model")
    assert loaded.config == model.config
    hidden = model.eval().hidden(bytes)
    assert torch.equal(loaded.further_logits(loaded.hidden(bytes)), model.further_logits(hidden))


def test_adapters_beside_them_are_trained_and_merged() -> None:
    pytest.importorskip("peft")
    lora, bytes = LoraSettings(rank=2, alpha=4, targets=["in_proj", "further_heads"]), random_bytes(2, 9)
    model, whole = with_heads("mambabyte"), with_heads("mambabyte")
    add_adapters(model, lora)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # in the first, B is zero, and A has no gradient
        optimizer.zero_grad()
        model.training_loss(bytes, bytes).auxiliary.backward()
        optimizer.step()
    whole.load_state_dict(merged(model.state_dict(), lora))
    assert not torch.equal(whole.further_heads.weight, with_heads("mambabyte").further_heads.weight)
    found = model.further_logits(model.hidden(bytes))
    assert torch.allclose(found, whole.further_logits(whole.hidden(bytes)), **CLOSE)
    assert training_flops_per_byte(model.config, 64, lora) < whole.flops_per_byte(64).training


def test_flops_count_them_in_training(model: ByteLM) -> None:
    alone = replace(model.config, prediction_heads=1).build().flops_per_byte(560)
    flops, heads = model.flops_per_byte(560), 2 * 3 * 256 * model.lm_head.in_features
    assert flops.inference == alone.inference, "nothing but training and drafting computes them"
    assert flops.training == alone.training + 3 * heads
    assert training_flops_per_byte(model.config, 560) == flops.training
    frozen = training_flops_per_byte(model.config, 560, freeze=["further_heads.*"])
    assert frozen == pytest.approx(alone.training + 2 * heads)  # for the gradient of what they read


def test_flops_agree_with_pytorchs_counter_in_training() -> None:
    model, bytes = with_heads("cnn"), random_bytes(1, 64)
    with FlopCounterMode(display=False) as counter:
        nats, auxiliary = model.training_loss(bytes, bytes)
        (nats.mean() + auxiliary).backward()
    assert model.flops_per_byte(64).training == pytest.approx(counter.get_total_flops() / 64, rel=1e-9)


def test_the_memory_estimate_counts_them() -> None:
    tiny = ["experiment=tiny", "trainer.accelerator=cpu", "trainer.precision=fp32", "context_length=64"]
    alone, four = (
        MemoryBudget.of(TrainSettings.compose(*tiny, f"model.prediction_heads={heads}")).estimate(1)
        for heads in (1, 4)
    )
    width = TrainSettings.compose(*tiny).model.d_model
    assert four.weights - alone.weights == 4 * 3 * 256 * width
    # the logits of three heads, and what the cross entropy keeps of them
    assert four.activations - alone.activations >= 2 * 4 * 3 * 256 * 64


def test_checkpoints_from_before_there_were_further_heads_have_one() -> None:
    description = MambaByteConfig().to_dict()
    del description["prediction_heads"], description["further_heads_weight"]
    assert config_from_dict(description) == MambaByteConfig()
    assert MambaByteConfig().build().further_heads is None


class Uniform(ByteLM):
    """One of a user's own that implements `forward` alone."""

    def __init__(self, config: ByteLMConfig) -> None:
        super().__init__(config)
        self.logits = nn.Parameter(torch.zeros(256))

    def forward(self, bytes, state=None, document_start=None):
        return self.logits.expand(*bytes.shape, 256)

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        return FlopsPerByte(0.0)


@dataclass
class UniformConfig(ByteLMConfig):
    width: int
    model = Uniform


def test_settings_of_heads_are_obeyed_or_refused() -> None:
    bytes = random_bytes(1, 5)
    model = UniformConfig(1).build()
    assert model.training_loss(bytes, bytes).auxiliary is None
    with pytest.raises(
        UserError, match=r"Uniform predicts the next byte alone: set model\.prediction_heads=1"
    ):
        UniformConfig(1, prediction_heads=2).build()
    with pytest.raises(UserError, match=r"model\.further_heads_weight=0\.5 would be ignored"):
        TransformerConfig(further_heads_weight=0.5).build()
    with pytest.raises(UserError, match="prediction_heads must be at least 1 and at most 64"):
        TransformerConfig(prediction_heads=0)
    with pytest.raises(UserError, match="this model has no heads for the bytes after the next one"):
        with_heads("lstm", 1).further_logits(torch.zeros(1, 32))
