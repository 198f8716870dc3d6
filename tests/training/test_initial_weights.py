"""Training that starts from given weights, and weights that are not trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mambabyte.checkpoints import load_model, read
from mambabyte.config.overrides import as_meant
from mambabyte.errors import UserError
from mambabyte.models import config_from_dict
from mambabyte.training.settings import TrainSettings

MODEL = ("model=of_ckpt", "model.d_model", "model.n_layer")


@pytest.fixture
def finetune(configure, corpus: Path, tmp_path: Path):
    """finetune("name", "key=value", ...) trains from given weights and returns its run directory."""
    from mambabyte.commands import train

    def finetune(name: str, *overrides: str) -> Path:
        run_dir = tmp_path / "runs" / name
        own = [
            f"name={name}",
            f"run_dir={run_dir}",
            f"data.path={corpus}",
            f"data.folder={tmp_path}/prepared",
        ]
        small = ["trainer.global_batch_bytes=64", "trainer.micro_batch_size=2", "context_length=32"]
        small += ["trainer.accelerator=cpu", "trainer.precision=fp32", "budget=none", "trainer.max_steps=3"]
        small += ["optimizer.warmup_steps=0", "callbacks.sample_every=0", "callbacks.checkpoint_every=1"]
        train.run(configure("train", "experiment=finetune", *small, *own, *overrides))
        return run_dir

    return finetune


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).state_dict()


def test_training_begins_with_the_weights_of_the_checkpoint(finetune, finished: Path) -> None:
    run_dir = finetune("next", f"ckpt={finished}", "optimizer.learning_rate=1e-9", "trainer.max_steps=1")
    before, after = weights(finished), weights(run_dir)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-8) for name in before)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert read(run_dir).model_config == read(finished).model_config
    assert read(run_dir).config["ckpt"] == str(finished)
    assert json.loads((run_dir / "summary.json").read_text())["ckpt"] == str(finished)


def test_it_resumes_from_its_own_weights_without_the_checkpoint(finetune, finished: Path, tmp_path) -> None:
    given = shutil.copytree(finished, tmp_path / "given")
    whole = finetune("whole", f"ckpt={given}")
    finetune("parts", f"ckpt={given}", "trainer.max_steps=2", "optimizer.decay_from=1")
    shutil.rmtree(given)
    finetune("whole", f"ckpt={given}")  # complete: reported again
    resumed = finetune("parts", f"ckpt={given}", "optimizer.decay_from=1")
    assert read(resumed).step == 3
    assert weights(resumed).keys() == weights(whole).keys()


def test_frozen_weights_stay_to_the_bit(finetune, finished: Path) -> None:
    run_dir = finetune("frozen", f"ckpt={finished}", "freeze=[*.mixer.in_proj.*, backbone.embedding.weight]")
    before, after = weights(finished), weights(run_dir)
    frozen = {"backbone.embedding.weight", "lm_head.weight"}  # tied
    frozen |= {name for name in before if ".mixer.in_proj." in name}
    assert len(frozen) == 4
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen
    with pytest.raises(UserError, match="holds a run with another configuration: freeze"):
        finetune("frozen", f"ckpt={finished}", "trainer.max_steps=4")


def test_new_heads_are_trained_beside_a_model_that_stays(finetune, finished: Path) -> None:
    heads = ["model.prediction_heads=3", "model.further_heads_weight=2", "freeze=[backbone.*]"]
    run_dir = finetune("heads", f"ckpt={finished}", *heads, "trainer.max_steps=2")
    before, after = weights(finished), weights(run_dir)
    torch.manual_seed(0)  # of the run
    begun = config_from_dict(read(run_dir).model_config).build().state_dict()["further_heads.weight"]
    trained = after.pop("further_heads.weight")
    assert trained.shape == begun.shape and not torch.equal(trained, begun)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(
        UserError, match=r"prediction_heads=3, which stays: leave out model\.prediction_heads=2"
    ):
        finetune("fewer", f"ckpt={run_dir}", "model.prediction_heads=2")
    own = finetune("own", f"ckpt={run_dir}", "trainer.max_steps=1")
    assert read(own).model_config == read(run_dir).model_config
    with pytest.raises(UserError, match=r"another configuration: model\.prediction_heads \(3 there, 4 now\)"):
        finetune("own", f"ckpt={run_dir}", "model.prediction_heads=4")


REFUSED = {
    "no weights": (["ckpt=null"], "model=of_ckpt takes the model of ckpt="),
    "nothing there": (["ckpt=nowhere"], "there is no checkpoint at"),
    "another model": (["model=small"], r"holds another model \(d_model 32 there, 192 now"),
    "another kind": (["model=hnet"], r"holds another model \(MambaByte there, HNet now\): leave"),
    "a size": (["budget.parameters=1e5"], "budget.parameters chooses a model's size"),
    "no such weight": (["freeze=[*.nothing]"], r"no weight of this model matches '\*.nothing'"),
    "a tied head": (
        ["freeze=[lm_head.*]"],
        r"'lm_head\.weight' is tied to 'backbone\.embedding\.weight' in this model: name that",
    ),
    "heads of adapters": (
        ["model.prediction_heads=2", "lora=default"],
        r"the new heads of model\.prediction_heads=2 would stay as they begin",
    ),
    "a weight of no heads": (["model.further_heads_weight=2"], "would be ignored"),
    "all frozen": (['freeze=["*"]'], "leaves no weight to train"),
}


@pytest.mark.parametrize(
    ("overrides", "message"), REFUSED.values(), ids=[name.replace(" ", "_") for name in REFUSED]
)
def test_what_cannot_be_started_is_refused_before_there_is_a_run(
    finetune, finished: Path, tmp_path, overrides, message
) -> None:
    with pytest.raises(UserError, match=message):
        finetune("refused", f"ckpt={finished}", *overrides)
    assert not (tmp_path / "runs").exists()


def test_the_same_model_may_be_named_as_well(finetune, finished: Path) -> None:
    model = read(finished).config["model"]
    same = [f"model.{key}={value}" for key, value in model.items() if key != "_target_" and value is not None]
    run_dir = finetune("same", f"ckpt={finished}", "model=small", *same, "trainer.max_steps=1")
    assert read(run_dir).model_config == model


def test_patterns_are_the_text_that_was_typed() -> None:
    assert as_meant(["freeze=[*.norm.*, backbone.1.10]"], TrainSettings) == [
        "freeze=[*.norm.*,backbone.1.10]"
    ]
