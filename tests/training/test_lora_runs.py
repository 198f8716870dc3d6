"""Runs that train adapters beside given weights, and what becomes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mambabyte
from mambabyte.checkpoints import load_model, read, weights_fingerprint
from mambabyte.commands import export, generate, train
from mambabyte.errors import UserError
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.training.callbacks.scan_statistics import ScanStatistics
from mambabyte.training.initial_weights import trainable_model
from tests.conftest import FILES, TINY

peft = pytest.importorskip("peft")

TEXT = torch.tensor([list(b"the quick brown fox")])
LORA = ["lora=default", "lora.rank=3", "lora.dropout=0.2", "optimizer.learning_rate=3e-2"]


@pytest.fixture(scope="module")
def adapted(finished: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run with adapters, not to be changed."""
    folder = tmp_path_factory.mktemp("adapted")
    train.run(settings(folder, finished, corpus))
    return folder / "run"


def settings(folder: Path, base: Path, corpus: Path, *overrides: str) -> train.TrainSettings:
    sizes = [each for each in TINY if not each.startswith("model.")]
    places = [f"data.path={corpus}", f"data.folder={folder}/prepared", f"run_dir={folder}/run"]
    own = ["name=adapted", "experiment=finetune", f"ckpt={base}", "budget=none"]
    return train.TrainSettings.compose(*own, *sizes, *FILES[1:], *places, *LORA, *overrides)


def adapted_model(run_dir: Path) -> torch.nn.Module:
    """The model that was trained, its adapters beside its weights."""
    checkpoint = read(run_dir)
    model = trainable_model(mambabyte.models.config_from_dict(checkpoint.model_config), checkpoint.lora)
    model.load_state_dict(checkpoint.state_dict)
    return model.eval()


def test_only_the_adapters_are_trained(adapted: Path, finished: Path) -> None:
    checkpoint, base = read(adapted), load_model(finished).state_dict()
    weights = checkpoint.state_dict
    adapters = {name: tensor for name, tensor in weights.items() if ".lora_" in name}
    kept = {name.replace(".base_layer.", "."): weights[name] for name in weights.keys() - adapters.keys()}
    assert len(adapters) == 2 * 4 * 2 and kept.keys() == base.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in base.items())
    assert all(tensor.abs().max() > 0 for tensor in adapters.values())
    assert checkpoint.lora == LoraSettings(rank=3, alpha=16, dropout=0.2)
    # the optimizer knows nothing else
    assert len(checkpoint.content["optimizer_states"][0]["state"]) == len(adapters)


def test_the_run_loads_as_the_merged_model(adapted: Path, finished: Path) -> None:
    merged, base, trained = load_model(adapted), load_model(finished), adapted_model(adapted)
    assert merged.state_dict().keys() == base.state_dict().keys()
    with torch.no_grad():
        logits = merged(TEXT)
        # the same products, added in another order
        torch.testing.assert_close(logits, trained(TEXT), atol=2e-6, rtol=2e-5)
        assert (logits - base(TEXT)).abs().max() > 1e-2
    summary = json.loads((adapted / "summary.json").read_text())
    assert summary["parameters"] == base.num_parameters()
    assert summary["validation"]["bits_per_byte"] < 8


def test_a_resumed_run_ends_with_the_same_bits_dropout_included(
    adapted: Path, finished: Path, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapted, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000012.ckpt").unlink()
    assert read(tmp_path / "run").step == 10
    run = settings(tmp_path, finished, corpus)
    train.run(run)
    expected, found = read(adapted).content, read(tmp_path / "run").content
    assert found["global_step"] == 12
    assert all(torch.equal(found["state_dict"][name], each) for name, each in expected["state_dict"].items())
    with pytest.raises(UserError, match=r"another configuration: lora.rank \(3 there, 4 now\)"):
        train.run(settings(tmp_path, finished, corpus, "lora.rank=4"))
    with pytest.raises(UserError, match=r"another configuration: lora \(null there|lora.alpha \(16"):
        train.run(replace(run, lora=None))


def test_the_scan_statistics_are_those_of_the_merged_weights(adapted: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0)
    found = []
    for model in (adapted_model(adapted), load_model(adapted)):
        module: Any = model
        statistics = ScanStatistics(lambda step: True)
        statistics.on_train_batch_start(trainer, module)
        model(TEXT)
        statistics.on_step(trainer, module, 1)
        found.append(statistics.columns())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    base = read(adapted).state_dict["backbone.layers.0.mixer.dt_proj.base_layer.weight"]
    assert not torch.allclose(load_model(adapted).backbone.layers[0].mixer.dt_proj.weight, base, rtol=1e-3)


def test_the_adapter_alone_is_pefts_and_gives_the_same_model(
    adapted: Path, finished: Path, configure: Callable, tmp_path: Path, capsys
) -> None:
    export.run(configure("export", f"ckpt={adapted}", f"out={tmp_path}/adapter", "format=adapter"))
    assert "holds the 2,424 parameters of the adapters of step 12" in capsys.readouterr().err
    files = {path.name: path.stat() for path in (tmp_path / "adapter").iterdir()}
    assert files.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert files["adapter_model.safetensors"].st_size < 20_000
    assert len({each.st_mode for each in files.values()}) == 1  # others may read all of them
    model = peft.PeftModel.from_pretrained(load_model(finished), str(tmp_path / "adapter")).merge_and_unload()
    expected = load_model(adapted).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    mambabyte.save(model, tmp_path / "merged")
    assert load_model(tmp_path / "merged").state_dict().keys() == expected.keys()
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card and "PeftModel.from_pretrained" in card and str(tmp_path) not in card


def test_other_formats_hold_the_merged_model(
    adapted: Path, configure: Callable, tmp_path: Path, capsys
) -> None:
    export.run(configure("export", f"ckpt={adapted}", f"out={tmp_path}/whole"))
    expected = load_model(adapted).state_dict()
    assert all(torch.equal(expected[n], t) for n, t in load_model(tmp_path / "whole").state_dict().items())
    assert read(tmp_path / "whole").lora is None
    written = []
    for ckpt in (adapted, tmp_path / "whole"):
        generate.run(configure("generate", f"ckpt={ckpt}", "bytes=8", "prompt=the "))
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]


def test_a_run_without_adapters_has_none_to_export(
    finished: Path, configure: Callable, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds no adapters"):
        export.run(configure("export", f"ckpt={finished}", f"out={tmp_path}/adapter", "format=adapter"))
    assert not (tmp_path / "adapter").exists()


def test_an_adapted_model_is_not_saved_as_a_whole_one(adapted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has adapters beside its weights: merge them first"):
        mambabyte.save(adapted_model(adapted), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("lora", [{"rank": "x", "alpha": 1}, {"rank": 4, "alpha": 16}, 3, {}], ids=str)
def test_a_strangers_description_of_adapters_is_one_sentence(adapted: Path, tmp_path: Path, lora) -> None:
    content = read(adapted).content
    content["mambabyte"]["lora"] = lora
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError) as refusal:
        load_model(tmp_path / "a.ckpt")
    assert "\n" not in str(refusal.value)


REFUSED = {
    "no weights": (["ckpt=null", "model=small"], "lora= adapts the weights of ckpt="),
    "frozen too": (["freeze=[*.norm.*]"], "trains its adapters alone"),
    "no such layer": (["lora.targets=[qkv]"], "lora.targets: this model has no linear layer 'qkv'"),
    "no layer": (["lora.targets=[]"], "lora.targets names no layer"),
    "no rank": (["lora.rank=0"], "lora.rank must be at least 1"),
    "two": (["lora=[none,default]"], "lora takes one choice"),
}


@pytest.mark.parametrize(
    ("overrides", "message"), REFUSED.values(), ids=[name.replace(" ", "_") for name in REFUSED]
)
def test_what_cannot_be_adapted_is_refused_before_there_is_a_run(
    finished: Path, corpus: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train.run(settings(tmp_path, finished, corpus, *overrides))
    assert not (tmp_path / "run").exists()


def test_a_setting_of_adapters_without_adapters_says_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"no setting lora\.rank yet: choose lora= too"):
        train.TrainSettings.compose("experiment=finetune", "ckpt=a", "lora.rank=4")


def test_adapters_name_the_weights_that_they_belong_to(
    adapted, finished, configure, tmp_path, capsys
) -> None:
    export.run(configure("export", f"ckpt={adapted}", f"out={tmp_path}/out", "format=adapter"))
    base = weights_fingerprint(load_model(finished))
    assert f"of the adapters of step 12, for the weights with sha256 {base}" in capsys.readouterr().err
    assert f"They belong to the weights with sha256 {base}" in (tmp_path / "out" / "README.md").read_text()


def test_adapters_alone_are_no_model(adapted, configure, tmp_path) -> None:
    out = tmp_path / "out"
    export.run(configure("export", f"ckpt={adapted}", f"out={out}", "format=adapter"))
    for place in (out, out / "adapter_model.safetensors"):
        with pytest.raises(UserError, match="holds adapters of peft without the model that they belong to"):
            read(place)


def test_a_rank_above_that_of_every_layer_is_refused_before_there_is_a_run(
    finished, corpus, tmp_path
) -> None:
    with pytest.raises(UserError, match=r"lora\.rank=33 is above the rank of every layer .*, 32 at most"):
        train.run(settings(tmp_path, finished, corpus, "lora.rank=33"))
    assert not (tmp_path / "run").exists()


def test_a_model_that_peft_wraps_is_to_be_merged_first(adapted, finished, configure, tmp_path) -> None:
    export.run(configure("export", f"ckpt={adapted}", f"out={tmp_path}/out", "format=adapter"))
    model = peft.PeftModel.from_pretrained(load_model(finished), str(tmp_path / "out"))
    for use in (mambabyte.generate, lambda model: mambabyte.save(model, tmp_path / "saved")):
        with pytest.raises(UserError, match=r"wrapped by peft: give model\.merge_and_unload\(\)"):
            use(model)
