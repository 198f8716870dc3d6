"""What rank 0 chooses, on two ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.training.distributed.ranks import Ranks

AUTO = "trainer.precision=auto"


def test_both_ranks_train_in_the_precision_that_rank_zero_chose(train: Callable, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_steps=2", AUTO]
    end = train(2, run_dir, *two)
    assert end.codes == [0, 0], end.err
    (chosen,) = (line.partition("=")[2] for line in end.err[0].splitlines() if "trainer.precision=" in line)
    assert json.loads((run_dir / "measured.json").read_text())["precision"]["answer"] == chosen
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["trainer"]["precision"] == chosen
    assert f"2 x cpu, {chosen} (" in end.err[0]
    assert "precision" not in end.err[1]


def test_a_dry_run_waits_for_no_other_rank(ranks: Ranks, settings: list[str], tmp_path: Path) -> None:
    end = ranks(2, "train", *settings, "trainer=ddp", f"run_dir={tmp_path}/run", AUTO, "dry_run=true")
    assert end.codes == [0, 0], end.err
    assert not (tmp_path / "run").exists()
