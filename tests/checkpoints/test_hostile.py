"""Checkpoints made to fill memory or to confuse are one sentence, before anything is allocated."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig
from tests.checkpoints.test_checkpoints import content, model  # noqa: F401


@pytest.mark.parametrize(
    "described",
    [{"d_model": 10**6}, {"n_layer": 10**4}, {"d_state": 10**5}, {"dt_rank": 10**6, "expand": 1000}],
)
def test_a_description_larger_than_the_weights_is_refused_before_a_model_is_built(
    model,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    described: dict[str, int],
) -> None:
    saved = content(model)
    saved["mambabyte"]["model"] = {**model.config.to_dict(), **described}
    checkpoints.write(saved, tmp_path / "a.ckpt")
    build = MambaByteConfig.build

    def on_meta_only(config: MambaByteConfig) -> Any:
        assert torch.empty(0).is_meta
        return build(config)

    monkeypatch.setattr(MambaByteConfig, "build", on_meta_only)
    with pytest.raises(UserError, match="do not fit the model the file describes"):
        checkpoints.load_model(tmp_path / "a.ckpt")


def test_weights_with_less_memory_than_their_shape_says_are_refused(model, tmp_path: Path) -> None:  # noqa: F811
    saved = content(model)
    saved["state_dict"] = {
        name: torch.zeros(1).expand(tensor.shape) for name, tensor in saved["state_dict"].items()
    }
    checkpoints.write(saved, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="do not fit the model the file describes"):
        checkpoints.load_model(tmp_path / "a.ckpt")


def test_a_compressed_checkpoint_is_refused_before_it_is_read(
    model,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoints.write({**content(model), "zeros": torch.zeros(10**6)}, tmp_path / "a.ckpt")
    bomb = zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "a.ckpt") as whole, bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        checkpoints.read(tmp_path / "bomb.ckpt")


@pytest.mark.parametrize("step", [None, "3", [3], 1.5])
def test_a_checkpoint_without_a_number_of_steps_is_refused(model, tmp_path: Path, step: Any) -> None:  # noqa: F811
    checkpoints.write({**content(model), "global_step": step}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="how many steps"):
        checkpoints.read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("length", [None, "8", 0, 2**40, [8]])
def test_a_configuration_of_wrong_types_is_refused(model, tmp_path: Path, length: Any) -> None:  # noqa: F811
    saved = content(model)
    saved["mambabyte"]["config"] = {"context_length": length}
    checkpoints.write(saved, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="with which context_length"):
        _ = checkpoints.read(tmp_path / "a.ckpt").context_length
    saved["mambabyte"]["config"] = {"trainer": None}
    checkpoints.write(saved, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="trainer is no section"):
        _ = checkpoints.read(tmp_path / "a.ckpt").config
