"""mambabyte export: a folder that every command reads as it reads the run."""

from __future__ import annotations

import json
import re
import stat
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
from tests.conftest import FILES


@pytest.fixture
def exported(finished: Path, configure: Callable, tmp_path: Path) -> Path:
    export.run(configure("export", f"ckpt={finished}", f"out={tmp_path}/export"))
    return tmp_path / "export"


def test_the_export_measures_as_the_run_does(
    finished: Path, exported: Path, corpus: Path, configure: Callable, tmp_path: Path, capsys
) -> None:
    data = [*FILES, f"data.path={corpus}", f"data.folder={tmp_path}/prepared"]
    figures = []
    for ckpt, overrides in ((finished, []), (exported, data)):
        evaluate.run(configure("eval", f"ckpt={ckpt}", "json=true", *overrides))
        figures.append(json.loads(capsys.readouterr().out))
    for name in ("nats", "bytes", "weights_fingerprint", "data_fingerprint"):
        assert figures[0][name] == figures[1][name], name
    assert figures[1]["checkpoint"] == str(exported)


def test_it_holds_the_weights_and_the_configuration_and_nothing_else(finished: Path, exported: Path) -> None:
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in exported.iterdir()) == names
    weights = checkpoints.load_model(finished).state_dict()
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(weights)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in weights.items())
    kept, whole = checkpoints.read(exported).config, checkpoints.read(finished).config
    assert kept["model"] == whole["model"] and kept["optimizer"] == whole["optimizer"]
    assert checkpoints.read(exported).step == 12


def test_others_can_read_it_and_it_says_nothing_of_this_machine(
    finished: Path, exported: Path, configure: Callable
) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in exported.iterdir()}
    (exported / "another").touch()  # as the umask has it
    assert modes == {stat.S_IMODE((exported / "another").stat().st_mode)}
    text = (exported / "config.json").read_text()
    assert str(finished.parents[1]) not in text
    assert not re.search(r'": "[/~]', text)
    with pytest.raises(UserError, match=r"cannot be opened here .* name some, as in data=files"):
        evaluate.run(configure("eval", f"ckpt={exported}"))


def test_only_absolute_paths_are_left_out(tmp_path: Path) -> None:
    source = {"_target_": "x.Y", "path": ["/a/b", "c/d"], "texts": "~/books", "url": "https://h/x"}
    config = {"run_dir": Path("/runs/a"), "data": {"source": source, "folder": "data/prepared"}, "seed": 1}
    checkpoints.write_export(MambaByteConfig(d_model=16, n_layer=1).build(), config, 3, tmp_path / "a")
    assert checkpoints.read(tmp_path / "a").config == {
        "data": {
            "source": {"_target_": "x.Y", "path": ["c/d"], "url": "https://h/x"},
            "folder": "data/prepared",
        },
        "seed": 1,
    }


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


def test_other_formats_get_the_next_byte_s_head_alone(configure: Callable, tmp_path: Path, capsys) -> None:
    config = MambaByteConfig(d_model=16, n_layer=1, d_state=4, prediction_heads=3, tie_embeddings=True)
    model = config.build().eval()
    checkpoints.write_export(model, None, 0, tmp_path / "ours")
    export.run(configure("export", f"ckpt={tmp_path}/ours", f"out={tmp_path}/theirs", "format=mamba_ssm"))
    said = capsys.readouterr().err
    assert "format=mamba_ssm holds the next byte's head alone: others are left out" in said
    loaded = checkpoints.load_model(tmp_path / "theirs")
    assert f"holds the {loaded.num_parameters():,} parameters" in said
    assert checkpoints.weights_fingerprint(loaded) in said
    assert torch.equal(loaded(b"a text"), model(b"a text"))
    with pytest.raises(UserError, match=r"give it mambabyte\.checkpoints\.without_further_heads\(model\)"):
        checkpoints.write_export(model, None, 0, tmp_path / "other", "mamba_ssm")
