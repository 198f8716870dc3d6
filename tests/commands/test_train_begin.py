"""What `mambabyte train` says before it imports torch, which takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import FILES, TINY

# A program that ends where torch would be imported. Its standard error is no terminal.
CODE = """
import sys
from mambabyte.cli.main import main

class Torch:
    def find_spec(self, name, *_):
        if name == "torch":
            print("torch is imported", file=sys.stderr)
            sys.exit(3)

sys.meta_path.insert(0, Torch())
sys.exit(main(sys.argv[1:]))
"""


def begin(*overrides: str, folder: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, "train", *TINY, *FILES, *overrides],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "HOME": str(folder), **environment},
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.parametrize("environment", [{}, {"LOCAL_RANK": "0"}], ids=["alone", "rank 0"])
def test_it_says_at_once_what_it_waits_for(environment, corpus: Path, tmp_path: Path) -> None:
    said = begin(f"data.path={corpus}", folder=tmp_path, **environment)
    assert said == ["mambabyte: loading PyTorch", "torch is imported"]


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_the_other_ranks_are_silent(variable: str, corpus: Path, tmp_path: Path) -> None:
    assert begin(f"data.path={corpus}", folder=tmp_path, **{variable: "1"}) == ["torch is imported"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed=7", "holds a run with another configuration: seed (0 there, 7 now); give"),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate (0.01 there, 0.001 now); give"),
        ("model.d_model=16", "model.d_model (32 there, 16 now); give"),
        ("data.validation_fraction=0.4", "data.source.validation_fraction (0.2 there, 0.4 now); give"),
        ("optimizer.warmup_steps=3", "optimizer.warmup_steps (2 there, 3 now); give"),
        ("trainer.max_steps=1", "optimizer.warmup_steps=2 is more than all trainer.max_steps=1"),
        ("seed=nought", "seed must be an integer, not 'nought'"),
    ],
)
def test_what_a_run_must_keep_is_told_before_torch_is_imported(
    override: str, sentence: str, finished: Path, corpus: Path
) -> None:
    said = begin(f"run_dir={finished}", f"data.path={corpus}", override, folder=finished)
    assert len(said) == 1 and sentence in said[0]


def test_what_may_change_is_left_to_the_checkpoint(finished: Path, corpus: Path) -> None:
    places = [f"run_dir={finished}", "data.path=../../../" + corpus.name]  # relative, and so the same
    assert corpus.parent == finished.parents[2], "pytest's folders lie side by side"
    said = begin(*places, "trainer.max_steps=20", "callbacks.log_every=3", folder=finished)
    assert said[-1] == "torch is imported"
