"""Every model's small configuration trains, and has the size at which they are compared."""

import re
from pathlib import Path

import pytest
import torch

from mambabyte import checkpoints
from mambabyte.commands import train
from mambabyte.training.settings import TrainSettings

SMALL = ["small", "mambabyte", "transformer", "megabyte", "perceiver_ar", "gated_s4d", "lstm", "cnn"]
SMALL += ["spacebyte", "spacebyte_fixed", "hnet", "hnet_2stage", "mamba2", "mamba3", "hybrid"]
SMALL.append("mixer_stack mixer=linear_attention")


@pytest.mark.parametrize("choice", SMALL)
def test_small_configs_take_real_steps(choice, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"{number}: all happy families are alike. " * (3 + 5 * number))
    overrides = [
        *f"model={choice}".split(),
        "data=files", f"data.path={folder}", "data.windows=packed", "context_length=64",
        "data.validation_fraction=0.2", "trainer.max_steps=3", "optimizer.warmup_steps=2",
        "trainer.micro_batch_size=2", "trainer.global_batch_bytes=256", "trainer.accelerator=cpu",
        "callbacks.validate_bytes=256",
        "callbacks.sample_every=3", "callbacks.sample_bytes=8", f"run_dir={tmp_path}/run",
        f"data.folder={tmp_path}/prepared",
    ]  # fmt: skip
    train.run(TrainSettings.compose(*overrides))
    assert checkpoints.read(tmp_path / "run").step == 3
    assert 1.5e6 < checkpoints.load_model(tmp_path / "run").num_parameters() < 2.0e6


@pytest.mark.parametrize("choice", SMALL)
def test_experiment_tiny_takes_every_model(choice):
    settings = TrainSettings.compose("experiment=tiny", *f"model={choice}".split())
    alone = TrainSettings.compose(*f"model={choice}".split())
    assert settings.model == alone.model
    assert settings.trainer.max_steps == 60


def test_the_page_has_the_sizes_of_the_small_models():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| `(\w+)`[^|]*\|[^|]+\| ([\d,]+) \| ([\d.]+)M[^|]*\|([^|]+)\|$", re.MULTILINE)
    rows = {name: values for name, *values in row.findall(page)}
    # the stack of any mixer has a range
    assert {*rows} == {*SMALL[:-1], "small_ngrams"} - {"mambabyte"}
    for name, (parameters, flops, state) in rows.items():
        with torch.device("meta"):
            model = TrainSettings.compose(f"model={name}").model.build()
        assert f"{model.num_parameters():,}" == parameters
        assert f"{model.flops_per_byte(1024).inference / 1e6:.1f}" == flops
        assert ("constant size" in state) == model.recurrent
