"""Training from Python, and with an optimizer, a callback, a model and a data source of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch import Callback
from torch import Tensor, nn

import mambabyte
from mambabyte import checkpoints
from mambabyte.data import Document
from mambabyte.errors import UserError
from mambabyte.models import ByteLM, ByteLMConfig, FlopsPerByte, MambaByte
from mambabyte.training.optimizer import OptimizerConfig
from tests.conftest import TINY

HERE = __name__


@dataclass
class MomentumConfig(OptimizerConfig):
    momentum: float = 0.9

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=self.momentum)


class Noting(Callback):
    built = 0

    def __init__(self, path: str) -> None:
        self.path = path
        Noting.built += 1

    def on_train_end(self, trainer: Any, module: Any) -> None:
        Path(self.path).write_text(f"{trainer.global_step} {type(trainer.optimizers[0]).__name__}")


class Bigram(ByteLM):
    recurrent = True

    def __init__(self, config: BigramConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(256, 256)

    def forward(self, bytes: Tensor, state: Any = None, document_start: Tensor | None = None) -> Tensor:
        return self.table(bytes.long())

    def initial_state(self, batch_size: int) -> list[tuple[Tensor, ...]]:
        return [(torch.zeros(batch_size),)]

    def prefill(self, bytes: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self(bytes), state or self.initial_state(len(bytes))

    def blocks(self) -> list[nn.Module]:
        return [self.table]

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        return FlopsPerByte(256.0)


@dataclass
class BigramConfig(ByteLMConfig):
    scale: float = 1.0


BigramConfig.model = Bigram


class Numbers:
    """A data source: numbers in words that repeat."""

    def __init__(self, last: int) -> None:
        self.last = last

    def documents(self, split: str) -> Iterator[Document]:
        for number in range(self.last):
            yield Document(f"{split}-{number}", f"{split} number {number}, ".encode() * 20)

    def identity(self) -> dict[str, Any]:
        return {"source": "Numbers", "last": self.last}


def settings(tmp_path: Path, corpus: Path, *overrides: str) -> mambabyte.TrainSettings:
    tiny = [each for each in TINY if not each.startswith("model.")] if "+model.scale=2" in overrides else TINY
    data = ["data=files", f"data.path={corpus}", "data.validation_fraction=0.2", f"data.folder={tmp_path}/p"]
    return mambabyte.TrainSettings.compose(*tiny, *data, f"run_dir={tmp_path}/run", *overrides)


def test_a_run_from_python_is_that_of_the_command_line(tmp_path, corpus, start, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["a notebook"])
    mine = settings(tmp_path, corpus, "data.windows=packed")
    mine.trainer.max_steps = 10
    summary = mambabyte.train(mine)
    assert (summary["step"], summary["validation"]["protocol"]["name"]) == (10, "disjoint")
    theirs = checkpoints.read(start("theirs", "trainer.max_steps=10"))
    weights = checkpoints.read(tmp_path / "run").state_dict
    assert all(torch.equal(weights[name], tensor) for name, tensor in theirs.state_dict.items())
    mine.trainer.max_steps = 12
    assert mambabyte.train(mine)["step"] == 12, "it resumes"
    with pytest.raises(UserError, match=r"trainer\.max_steps must be at least 1, or null, not 0"):
        mine.trainer.max_steps = 0
    mine.model.d_model = 48
    with pytest.raises(UserError, match=r"another configuration: model\.d_model \(32 there, 48 now\)"):
        mambabyte.train(mine)


def test_document_starts_reach_the_model_only_where_they_matter(start, monkeypatch) -> None:
    """So that kernels without them serve most steps; decided before a batch goes to the device."""
    given, forward = [], MambaByte.forward

    def seen(self, bytes, state=None, document_start=None):
        if self.training:
            given.append(document_start)
        return forward(self, bytes, state, document_start)

    monkeypatch.setattr(MambaByte, "forward", seen)
    start("marks", "context_length=128", "trainer.micro_batch_size=1", "callbacks.evaluate_bytes=0")
    marked = [marks for marks in given if marks is not None]
    assert len(given) == 12 * 2 and 0 < len(marked) < len(given)
    assert all(marks[:, 1:].any() for marks in marked)


def test_an_optimizer_and_a_callback_of_ones_own(tmp_path, corpus, monkeypatch) -> None:
    monkeypatch.setattr(Noting, "built", 0)
    note = tmp_path / "note"
    mine = settings(
        tmp_path,
        corpus,
        f"optimizer._target_={HERE}.MomentumConfig",
        "~optimizer.betas",
        "~optimizer.weight_decay",
        "+optimizer.momentum=0.8",
        f"callbacks.extra=[{{_target_: {HERE}.Noting, path: '{note}'}}]",
    )
    assert isinstance(mine.optimizer, MomentumConfig)
    mambabyte.train(mine)
    assert note.read_text() == "12 SGD"
    assert Noting.built == 1, "checked before there is a run directory, and used"
    saved = checkpoints.read(tmp_path / "run").config["optimizer"]
    assert (saved["_target_"], saved["momentum"]) == (f"{HERE}.MomentumConfig", 0.8)
    with pytest.raises(UserError, match=r"_target_=torch\.optim\.SGD is not a dataclass derived from"):
        settings(tmp_path, corpus, "optimizer._target_=torch.optim.SGD")
    mine.callbacks.extra = [{"_target_": "pathlib.Path"}]
    mine.run_dir = tmp_path / "other"
    with pytest.raises(UserError, match=r"callbacks\.extra\[0\]\._target_=pathlib\.Path is not a Lightning"):
        mambabyte.train(mine)


def test_a_spike_is_skipped_with_an_optimizer_that_is_not_fused(tmp_path, corpus, monkeypatch) -> None:
    from mambabyte.training.module import ByteLMModule

    original = ByteLMModule.training_step
    kept: list[Tensor] = []

    def training_step(self, batch, index):
        step = self.global_step
        if step in (4, 5):
            kept.append(torch.cat([p.detach().flatten() for p in self.model.parameters()]))
        return original(self, batch, index) * (float("nan") if step == 4 else 1.0)

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    mine = settings(tmp_path, corpus, "trainer.on_spike=skip", "trainer.micro_batch_size=8")
    mine.optimizer = MomentumConfig(1e-2, 2)
    mambabyte.train(mine)
    assert torch.equal(kept[0], kept[1]) and kept[0].isfinite().all()


def test_a_model_and_a_data_source_of_ones_own(tmp_path, corpus) -> None:
    # What stands in a user's own conf/model/bigram.yaml and conf/data/numbers.yaml.
    mine = settings(tmp_path, corpus)
    mine.model = BigramConfig(scale=2)
    mine.data.source = {"_target_": f"{HERE}.Numbers", "last": 6}
    summary = mambabyte.train(mine)
    assert (summary["step"], summary["parameters"]) == (12, 65_536)
    assert checkpoints.read(tmp_path / "run").model_config == {
        "_target_": f"{HERE}.BigramConfig",
        "prediction_heads": 1,
        "further_heads_weight": 1.0,
        "scale": 2.0,
    }
    assert isinstance(mambabyte.load(tmp_path / "run", config=BigramConfig()), Bigram)
    with pytest.raises(UserError, match=r"mambabyte\.load\(path, config=YourConfig"):
        mambabyte.load(tmp_path / "run")


def test_a_model_of_ones_own_is_named_in_yaml(tmp_path, corpus) -> None:
    mine = settings(
        tmp_path, corpus, "model=cnn", f"model._target_={HERE}.BigramConfig",
        *(f"~model.{name}" for name in ("d_model", "n_layer", "kernel_size", "dilation_cycle")),
        "~model.norm_epsilon", "~model.tie_embeddings", "+model.scale=2",
    )  # fmt: skip
    assert mine.model == BigramConfig(scale=2.0)


@pytest.mark.parametrize("size", ["2", "auto"])
def test_data_that_is_not_there_leaves_no_run_behind(size, start, tmp_path) -> None:
    with pytest.raises(UserError, match=r"no file matches data\.path"):
        start("mine", "data=files", f"data.path={tmp_path}/nowhere", f"trainer.micro_batch_size={size}")
    assert not (tmp_path / "runs").exists()


def test_several_devices_and_dry_runs_from_python_are_refused(tmp_path, corpus, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", "--steps", "4"])
    with pytest.raises(UserError, match="from Python needs torchrun"):
        mambabyte.train(settings(tmp_path, corpus, "trainer.devices=2"))
    with pytest.raises(UserError, match="dry_run=true trains nothing"):
        mambabyte.train(settings(tmp_path, corpus, "dry_run=true", f"run_dir={tmp_path}/dry"))
    assert not (tmp_path / "dry").exists()


def test_training_works_in_a_thread(tmp_path, corpus) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(mambabyte.train, settings(tmp_path, corpus)).result()["step"] == 12


def test_settings_can_be_composed_inside_another_hydra_program(tmp_path, corpus) -> None:
    (tmp_path / "theirs").mkdir()
    with initialize_config_dir(str(tmp_path / "theirs"), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        mine = mambabyte.TrainSettings.compose("+experiment=tiny", "data=files", "data.path=~/notes")
        assert GlobalHydra.instance().hydra is outer
    assert mine.name == "tiny"
    assert mine.data.source["path"] == str(Path.home() / "notes")
