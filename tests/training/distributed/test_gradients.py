"""Two ranks compute the gradient of one process, though they score different numbers of bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor

from mambabyte.ops import recomputation
from tests.conftest import TINY
from tests.training.distributed.ranks import Ranks


class InFloat64(Callback):
    """Trains in float64 and saves the gradients, by name; with ``half``, no byte is scored of a step's second
    half, which is rank 1's or the second micro-batch's; with ``as_on_cuda``, it takes the ways of CUDA."""

    def __init__(self, path: str, half: bool, as_on_cuda: bool) -> None:
        self.path, self.half, self.as_on_cuda = path, half, as_on_cuda

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        module.double()
        if self.as_on_cuda:  # in the rank's own process
            recomputation.DEVICES.add("cpu")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_index: int) -> None:
        if self.half and (trainer.global_rank or batch_index):
            batch["targets"].fill_(-100)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        gradients = {name: parameter.grad for name, parameter in module.model.named_parameters()}
        whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}
        if trainer.is_global_zero:
            torch.save({"norm": module.gradient_norm, **whole}, self.path)


@pytest.fixture
def gradients(ranks: Ranks, documents: Path, tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """gradients("name", 2, "key=value", ..., half=True) -> those of the first step of two ranks."""

    def gradients(
        name: str, count: int, *overrides: str, half: bool = False, as_on_cuda: bool = False
    ) -> dict[str, torch.Tensor]:
        path = tmp_path / f"{name}.pt"
        arguments = f"path: '{path}', half: {half}, as_on_cuda: {as_on_cuda}"
        callback = f"{{_target_: {__name__}.InFloat64, {arguments}}}"
        places = [f"data.path={documents}", f"data.folder={tmp_path}/prepared", f"run_dir={tmp_path}/{name}"]
        more = [
            "trainer.max_steps=1",
            "optimizer.warmup_steps=1",
            "trainer.micro_batch_size=4",
            "callbacks.evaluate_bytes=0",
            f"callbacks.extra=[{callback}]",
        ]
        end = ranks(count, "train", *TINY, "data=files", *places, *more, *overrides)
        assert end.codes == [0] * count, end.err
        return torch.load(path)

    return gradients


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("policy", ["random_per_document", "contiguous", "packed"])
def test_the_gradients_of_ddp_and_fsdp_are_those_of_one_process(policy: str, gradients) -> None:
    windows = f"data.windows={policy}"
    expected = gradients("one", 1, windows)
    for strategy in ("ddp", "fsdp"):
        assert_equal(gradients(strategy, 2, windows, f"trainer={strategy}"), expected)


def test_a_rank_may_score_nothing(gradients) -> None:
    expected = gradients("one", 1, half=True)
    for strategy in ("ddp", "fsdp"):
        assert_equal(gradients(strategy, 2, f"trainer={strategy}", half=True), expected)


def test_what_backward_recomputes_on_cuda_is_right_under_fsdp_with_checkpointed_blocks(gradients) -> None:
    both = ("trainer=fsdp", "trainer.activation_checkpointing=true")
    assert_equal(gradients("fsdp", 2, *both, as_on_cuda=True), gradients("one", 1))
