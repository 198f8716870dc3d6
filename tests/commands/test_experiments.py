"""Every conf/experiment/*.yaml takes real steps once it is scaled down."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mambabyte import checkpoints
from mambabyte.commands import train
from mambabyte.config.composition import config_dir

SCALED_DOWN = [
    "model.d_model=16",
    "model.n_layer=1",
    "context_length=64",
    "trainer.max_steps=3",
    "optimizer.warmup_steps=2",
    "budget.parameters=null",
    "budget.training_flops=null",
    "budget.training_seconds=null",
    "trainer.micro_batch_size=2",
    "trainer.global_batch_bytes=256",
    "trainer.accelerator=cpu",
    "callbacks.validate_bytes=256",
    "callbacks.sample_bytes=8",
]
EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Parquet files as PG19's."""
    folder = tmp_path / "books"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        texts = [f"{split} {number}: " + "All happy families are alike. " * 9 for number in range(6)]
        table = pyarrow.table({"short_book_title": [str(n) for n in range(6)], "text": texts})
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_trains(experiment: str, configure, books: Path, finished: Path, tmp_path: Path) -> None:
    cfg = configure("train", f"experiment={experiment}")
    needs_data = "path" in cfg.data.source
    own = [f"data.path={books}"] if needs_data else ["data.validation_bytes=4096"]
    places = [f"run_dir={tmp_path}/run", f"data.folder={tmp_path}/prepared"]
    scaled_down = SCALED_DOWN
    if experiment == "finetune":  # its model is the checkpoint's
        scaled_down = [override for override in SCALED_DOWN if not override.startswith("model.")]
        own += [f"ckpt={finished}"]
    cfg = configure("train", f"experiment={experiment}", *scaled_down, *own, *places)
    assert cfg.name == experiment
    train.run(cfg)
    assert checkpoints.read(tmp_path / "run").step == 3


def test_pg19_is_the_recipe_of_the_paper(configure) -> None:
    cfg = configure("train", "experiment=pg19")
    assert cfg.trainer.global_batch_bytes == 48 * cfg.context_length == 393_216
    assert (cfg.trainer.max_steps, cfg.trainer.gradient_clip, cfg.trainer.precision) == (80_000, 0.1, "bf16")
    assert (cfg.optimizer.learning_rate, cfg.optimizer.warmup_steps) == (4e-4, 500)
    assert list(cfg.optimizer.betas) == [0.9, 0.95]
    assert (cfg.model.d_model, cfg.model.n_layer) == (1024, 53)
    assert cfg.data.windows == "random_per_document"
    assert cfg.trainer.micro_batch_size == "auto"
