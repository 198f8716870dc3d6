"""Every model's small configuration trains, and has the size at which they are compared."""

import pytest

from mambabyte import checkpoints
from mambabyte.commands import train
from mambabyte.training.settings import TrainSettings

SMALL = ["small", "mambabyte", "transformer", "megabyte", "perceiver_ar", "gated_s4d", "lstm", "cnn"]
SMALL += ["mixer_stack mixer=linear_attention", "mamba2", "hybrid"]


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
