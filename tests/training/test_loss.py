"""A step minimises its nats over its scored bytes, however its global batch is split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy

from mambabyte.config.settings import to_plain
from mambabyte.data import ByteDataModule
from mambabyte.training.module import ByteLMModule
from mambabyte.training.settings import TrainSettings
from mambabyte.training.trainer import build_trainer
from tests.conftest import TINY

WINDOWS = 8
POLICIES = ["random_per_document", "contiguous", "packed"]


class AfterOneStep(Callback):
    """Keeps the step's gradients, its norm and the bits per byte that a row of metrics would have."""

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in module.model.named_parameters()}
        self.norm = float(module.gradient_norm)
        self.bits_per_byte = module.row()["bits_per_byte"]


@pytest.fixture
def configured(documents: Path, tmp_path: Path):
    def configured(policy: str, micro_batch_size: int, *overrides: str) -> TrainSettings:
        return TrainSettings.compose(
            *TINY,
            "data=files",
            f"data.path={documents}",
            f"data.windows={policy}",
            f"data.folder={tmp_path}/prepared",
            f"run_dir={tmp_path}/run",
            f"trainer.micro_batch_size={micro_batch_size}",
            "trainer.max_steps=1",
            "trainer.gradient_clip=null",
            *overrides,
        )

    return configured


def data_of(settings: TrainSettings) -> ByteDataModule:
    return ByteDataModule(
        settings.data, settings.context_length, int(settings.trainer.micro_batch_size), WINDOWS, settings.seed
    )


def module_of(settings: TrainSettings) -> ByteLMModule:
    torch.manual_seed(0)
    return ByteLMModule(settings, to_plain(settings)).double()


def step(settings: TrainSettings) -> AfterOneStep:
    after = AfterOneStep()
    build_trainer(settings, [after], None).fit(module_of(settings), datamodule=data_of(settings))
    return after


def one_big_batch(settings: TrainSettings, unscored: slice = slice(0)) -> tuple[float, dict[str, Tensor]]:
    """The mean nats of the scored bytes of the whole global batch, and the gradient."""
    model = module_of(settings).model
    (batch,) = data_of(settings).train_batches(max_steps=1)
    assert len(batch["bytes"]) == WINDOWS
    targets = batch["targets"].long()
    targets[unscored] = -100
    logits = model(batch["bytes"], document_start=batch["document_start"])
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], factor: float = 1) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - factor * gradient).norm() / (factor * gradient.norm())
        assert error < 1e-6, name


@pytest.mark.parametrize("micro_batch_size", [1, 2, 8])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_gradient_is_that_of_one_big_batch(policy: str, micro_batch_size: int, configured) -> None:
    loss, gradients = one_big_batch(configured(policy, WINDOWS))
    found = step(configured(policy, micro_batch_size))
    assert_equal_gradients(found.gradients, gradients)
    assert found.bits_per_byte == pytest.approx(loss / math.log(2), rel=1e-6)  # its sums are fp32
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert found.norm == pytest.approx(float(norm), rel=1e-6)


def test_the_gradient_is_clipped_by_the_norm_that_is_logged(configured) -> None:
    _, gradients = one_big_batch(configured("random_per_document", WINDOWS))
    found = step(configured("random_per_document", 2, "trainer.gradient_clip=0.5"))
    assert found.norm > 0.5
    assert_equal_gradients(found.gradients, gradients, 0.5 / (found.norm + 1e-6))


@pytest.mark.parametrize("micro_batch_size", [2, 4])
def test_a_micro_batch_without_scored_bytes_changes_nothing(
    micro_batch_size: int, configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ByteLMModule.training_step
    empty = 4 // micro_batch_size

    def training_step(self, batch, index):
        if index < empty:
            batch["targets"].fill_(-100)
        return original(self, batch, index)

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    settings = configured("contiguous", micro_batch_size)
    loss, gradients = one_big_batch(configured("contiguous", WINDOWS), unscored=slice(4))
    found = step(settings)
    assert_equal_gradients(found.gradients, gradients)
    assert found.bits_per_byte == pytest.approx(loss / math.log(2), rel=1e-6)


def test_a_step_without_scored_bytes_has_no_gradient(configured, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ByteLMModule.training_step

    def training_step(self, batch, index):
        batch["targets"].fill_(-100)
        return original(self, batch, index)

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    found = step(configured("contiguous", 2))
    assert found.norm == 0 and math.isnan(found.bits_per_byte)
    assert not any(gradient.any() for gradient in found.gradients.values())


def test_of_windows_scored_throughout_the_loss_is_their_mean(
    configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ByteLMModule.training_step
    losses: list[Tensor] = []

    def training_step(self, batch, index):
        targets = batch["targets"].clamp(min=0)
        losses.append(original(self, {**batch, "targets": targets}, index))
        logits = self.model(batch["bytes"], document_start=batch["document_start"])
        losses.append(cross_entropy(logits.flatten(0, 1), targets.flatten().long()))
        return losses[0]

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    step(configured("contiguous", 8))
    torch.testing.assert_close(*losses)
