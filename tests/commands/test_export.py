"""mambabyte export: a folder that every command reads as it reads the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mambabyte import checkpoints
from mambabyte.commands import eval as evaluate
from mambabyte.commands import export
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig


@pytest.fixture
def exported(finished: Path, configure: Callable, tmp_path: Path) -> Path:
    export.run(configure("export", f"ckpt={finished}", f"out={tmp_path}/export"))
    return tmp_path / "export"


def test_the_export_measures_as_the_run_does(
    finished: Path, exported: Path, configure: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    figures = []
    for ckpt in (finished, exported):
        evaluate.run(configure("eval", f"ckpt={ckpt}", "json=true", f"output_dir={tmp_path}/evaluation"))
        figures.append(json.loads(capsys.readouterr().out))
    for name in ("nats", "bytes", "weights_fingerprint", "data_fingerprint"):
        assert figures[0][name] == figures[1][name], name
    assert figures[1]["checkpoint"] == str(exported)


def test_it_holds_the_weights_and_the_configuration_and_nothing_else(finished: Path, exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["config.json", "model.safetensors"]
    weights = checkpoints.load_model(finished).state_dict()
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(weights)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in weights.items())
    assert checkpoints.read(exported).config == checkpoints.read(finished).config
    assert checkpoints.read(exported).step == 12


def test_a_tied_weight_stands_there_under_both_names(tmp_path: Path) -> None:
    model = MambaByteConfig(d_model=16, n_layer=1, tie_embeddings=True).build()
    checkpoints.write_export(model, {}, 3, tmp_path / "tied")
    loaded = checkpoints.load_model(tmp_path / "tied")
    assert loaded.lm_head.weight is loaded.backbone.embedding.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_what_is_there_is_not_overwritten(finished: Path, exported: Path, configure: Callable) -> None:
    with pytest.raises(UserError, match="already exists"):
        export.run(configure("export", f"ckpt={finished}", f"out={exported}"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_export_is_a_user_error(name: str, exported: Path) -> None:
    content = (exported / name).read_bytes()
    (exported / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load_model(exported)
