"""Resuming from a checkpoint whose inner values have wrong types is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.runs.run import read_run

DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "callbacks": lambda content: content.update(callbacks=[1]),
    "data module": lambda content: content.update(ByteDataModule=3),
    "loops": lambda content: content.update(loops=None),
    "optimizer": lambda content: content.update(optimizer_states=[{"state": 3}]),
    "moments": lambda content: content["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3)),
    "groups": lambda content: content["optimizer_states"][0].update(param_groups=7),
    "fit loop": lambda content: content["loops"].update(fit_loop=[7]),
    "place in the data": lambda content: content["ByteDataModule"].update(settings="text"),
    "version": lambda content: content.update({"pytorch-lightning_version": [7]}),
    "spikes": lambda content: content["mambabyte"]["training"].update(spikes=5),
    "training": lambda content: content["mambabyte"].update(training={"row_sums": "x"}),
    "config": lambda content: content["mambabyte"]["config"].update(trainer=None),
    "data": lambda content: content["mambabyte"]["config"].update(data=[1]),
    "weights": lambda content: content.update(state_dict={"model.lm_head.weight": 1}),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_wrong_types_in_a_checkpoint_are_one_sentence(
    damage: str, start, finished: Path, corpus: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "finished"
    shutil.copytree(finished, run_dir, symlinks=True)
    shutil.copytree(finished.parents[1] / "prepared", tmp_path / "prepared")
    newest = checkpoints.resolve(run_dir)
    content = checkpoints.read(newest).content
    DAMAGES[damage](content)
    checkpoints.write(content, newest)
    with pytest.raises(UserError) as refusal:
        start("finished", "trainer.max_steps=14")
    assert "\n" not in str(refusal.value)
    assert "another configuration" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("metrics.csv", b"step,bytes,seconds,bits_per_byte\nsix,1,1,1\n", "move it away to go on"),
        ("metrics.csv", b"\xff\xfe", "move it away to go on"),
        ("sittings.json", b"{}", "move it away to begin a new record"),
        ("sittings.json", b"[{", "move it away to begin a new record"),
        ("sittings.json", b"[" * 100_000, "move it away to begin a new record"),
        ("sittings.json", b"\xff", "move it away to begin a new record"),
    ],
)
def test_a_damaged_file_of_the_run_is_named_and_kept(
    name: str, content: bytes, remedy: str, start, finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "finished"
    shutil.copytree(finished, run_dir, symlinks=True)
    shutil.copytree(finished.parents[1] / "prepared", tmp_path / "prepared")
    (run_dir / name).write_bytes(content)
    with pytest.raises(UserError, match=remedy) as refusal:
        start("finished", "trainer.max_steps=14")
    assert str(refusal.value).startswith(f"'{run_dir / name}'") and "\n" not in str(refusal.value)
    assert (run_dir / name).read_bytes() == content
    (run_dir / name).unlink()
    start("finished", "trainer.max_steps=13", "callbacks.evaluate_bytes=0")
    assert checkpoints.read(run_dir).step == 13


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\xff\xfe", b"a: [", b"[" * 100_000, b"- 1", b"trainer: 3\nmodel: {}", "half"],
    ids=["missing", "empty", "no text", "no YAML", "deep", "a list", "no section", "half"],
)
def test_a_complete_run_gets_its_configuration_back(
    content: bytes | str | None, start, finished: Path, tmp_path: Path, capsys
) -> None:
    run_dir = tmp_path / "runs" / "finished"
    shutil.copytree(finished, run_dir, symlinks=True)
    file = run_dir / "config.yaml"
    whole = yaml.safe_load(file.read_text())
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:700] if isinstance(content, str) else content)
        with pytest.raises(UserError, match="the command that trained the run writes it anew"):
            read_run(run_dir)
    before = read_run(finished)
    start("finished", "callbacks.log_every=3")  # the record is of what was trained, and not of this
    assert "config.yaml was damaged: written anew" in capsys.readouterr().err
    found = yaml.safe_load(file.read_text())
    assert {k: v for k, v in found.items() if k != "data"} == {k: v for k, v in whole.items() if k != "data"}
    assert read_run(run_dir).validation == before.validation
    assert len(json.loads((run_dir / "sittings.json").read_text())) == 1
    start("finished")
    assert "written anew" not in capsys.readouterr().err
