"""A run that is refused leaves its directory as it was, and a new one none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mambabyte import checkpoints
from mambabyte.errors import UserError


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A complete run."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "finished", symlinks=True))


def files(run_dir: Path) -> dict[str, bytes]:
    """All but the lock, which is opened for writing."""
    paths = (path for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in paths}


def with_changed_place(run_dir: Path, change: Callable[[dict], object]) -> None:
    """Change what the run's checkpoint says about its place in the data."""
    found = checkpoints.read_newest(run_dir)
    assert found is not None
    content = {**found[0].content}
    content["ByteDataModule"] = change(content["ByteDataModule"])
    checkpoints.write(content, found[0].path)


def test_a_resume_with_other_data(start, run_dir: Path, corpus: Path, tmp_path: Path) -> None:
    place = tmp_path / "changing"
    shutil.copytree(corpus, place)
    other = start("changing", f"data.path={place}", "data=files", "data.windows=packed")
    before = files(other)
    assert "summary.json" in before
    (place / "20.txt").write_text("a new document, that was not there when the run began")
    with pytest.raises(UserError, match=r"trained with other settings \(the training data\)"):
        start("changing", f"data.path={place}", "data=files", "data.windows=packed", "trainer.max_steps=14")
    assert files(other) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda place: {**place, "shuffle": 99}, "order of windows is of another version"),
        (lambda place: 5, "cannot be resumed from"),
        (lambda place: {"shuffle": 1}, "cannot be resumed from"),
    ],
    ids=["another version", "a number", "no settings"],
)
def test_a_resume_from_a_damaged_place(change, sentence: str, start, run_dir: Path) -> None:
    with_changed_place(run_dir, change)
    before = files(run_dir)
    with pytest.raises(UserError, match=sentence):
        start("finished", "trainer.max_steps=14")
    assert files(run_dir) == before


def test_a_resume_from_a_damaged_optimizer_is_no_sitting(start, run_dir: Path) -> None:
    found = checkpoints.read_newest(run_dir)
    assert found is not None
    checkpoints.write({**found[0].content, "optimizer_states": [{"state": 3}]}, found[0].path)
    before = files(run_dir)
    with pytest.raises(UserError, match="cannot be resumed from"):
        start("finished", "trainer.max_steps=14")
    after = files(run_dir)
    assert after.pop("config.yaml") != before.pop("config.yaml")  # which the next command writes anew
    assert after == before


def test_more_steps_taken_than_asked_for(start, run_dir: Path) -> None:
    before = files(run_dir)
    with pytest.raises(UserError, match="has taken 12 steps already"):
        start("finished", "trainer.max_steps=4", "trainer.threads=auto", "trainer.micro_batch_size=auto")
    assert files(run_dir) == before


def test_a_new_run_with_too_little_data(start, tmp_path: Path) -> None:
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_text("0123456789" * 2)
    large.write_text("0123456789" * 100)
    parts = f"{{a: {{data: files, path: {large}}}, b: {{data: files, path: {small}}}}}"
    with pytest.raises(UserError, match=r"data\.parts\.b: the training data holds .* less than one window"):
        start("new", "data=mixture", f"data.parts={parts}", "data.windows=contiguous")
    assert not (tmp_path / "runs").exists()


def test_a_new_run_from_weights_that_do_not_fit(start, run_dir: Path, tmp_path: Path) -> None:
    found = checkpoints.read_newest(run_dir)
    assert found is not None
    content = {**found[0].content}
    content["state_dict"] = {name: tensor[:1] for name, tensor in content["state_dict"].items()}
    checkpoints.write(content, tmp_path / "misfit.ckpt")
    with pytest.raises(UserError, match="do not fit the model the file describes"):
        start("new", f"ckpt={tmp_path / 'misfit.ckpt'}")
    assert not (tmp_path / "runs" / "new").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["model.max_length=16"], "context_length=32 is more than model.max_length=16"),
        (["model.max_length=32", "callbacks.sample_bytes=33"], r"set callbacks\.sample_bytes=32 or less"),
        (
            ["model.max_length=32", "callbacks.sample_bytes=31", "callbacks.sample_prompt=abc"],
            "sample_bytes=30 or",
        ),
        (["model.global_max_length=8"], r"sample_bytes=16 .* the 15 bytes that this model can read of any"),
    ],
    ids=["windows", "samples", "prompt", "patches"],
)
def test_more_bytes_than_the_model_has_positions(settings, sentence: str, start, tmp_path: Path) -> None:
    model = ["model=spacebyte", "model.local_d_model=16", "model.n_layer=1"]
    with pytest.raises(UserError, match=sentence):
        start("short", *model, *settings)
    assert not (tmp_path / "runs" / "short").exists()
