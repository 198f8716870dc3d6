"""Any damage to a checkpoint is found, and the one before it is used."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from mambabyte import checkpoints
from mambabyte.errors import UserError
from tests.checkpoints.test_checkpoints import content, model  # noqa: F401

NAMES = [f"step_{step:08d}.ckpt" for step in (3, 20, 100)]


@pytest.fixture
def folder(model, tmp_path: Path) -> Path:  # noqa: F811
    for name in NAMES:
        checkpoints.write(content(model), tmp_path / "run" / "checkpoints" / name)
    return tmp_path / "run" / "checkpoints"


def newest(folder: Path) -> tuple[str, list[str]]:
    found = checkpoints.read_newest(folder.parent)
    assert found is not None
    saved, damaged = found
    assert saved.step == 3
    return saved.path.name, [each.name for each in damaged]


def test_other_programs_read_a_file_with_a_checksum(folder: Path) -> None:
    with zipfile.ZipFile(folder / NAMES[0]) as file:
        assert file.testzip() is None
        assert file.comment.startswith(b"sha256=")
    assert torch.load(folder / NAMES[0], weights_only=True)["global_step"] == 3


def test_one_flipped_bit_anywhere_is_found(folder: Path) -> None:
    path = folder / NAMES[-1]
    whole = path.read_bytes()
    places = [*range(8), *range(40, len(whole), len(whole) // 100), *range(len(whole) - 100, len(whole))]
    for place in places:
        bit = 1 << place % 8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        assert newest(folder) == (NAMES[1], [NAMES[2]]), place
    path.write_bytes(whole)
    assert newest(folder) == (NAMES[2], [])


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_file_cut_short_is_found(folder: Path, kept: float) -> None:
    for name in NAMES[1:]:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(kept * len(whole))])
    assert newest(folder) == (NAMES[0], [NAMES[2], NAMES[1]])
    with pytest.raises(UserError, match=r"damaged, cut short"):  # ckpt= never falls back to another file
        checkpoints.load_model(folder.parent)


def test_a_checksum_cut_off_is_found(folder: Path) -> None:
    path = folder / NAMES[-1]
    path.write_bytes(path.read_bytes()[:-71])
    assert newest(folder) == (NAMES[1], [NAMES[2]])


def test_a_run_with_only_damaged_checkpoints_is_not_restarted(folder: Path) -> None:
    for name in NAMES:
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"step_00000100\.ckpt.*bring back a copy, or remove") as caught:
        checkpoints.read_newest(folder.parent)
    assert "\n" not in str(caught.value)
    assert checkpoints.read_newest(folder.parent.parent) is None


def test_a_checkpoint_without_a_checksum_is_from_an_early_version(folder: Path, model) -> None:  # noqa: F811
    torch.save(content(model), folder / NAMES[-1])
    assert newest(folder) == (NAMES[2], [])
    checkpoints.load_model(folder.parent)


def test_another_format_is_not_damage(folder: Path, model) -> None:  # noqa: F811
    checkpoints.write(content(model, format=99), folder / NAMES[-1])
    with pytest.raises(UserError, match="format 99"):
        checkpoints.read_newest(folder.parent)


@pytest.mark.parametrize(
    "fault", [MemoryError(), RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)")]
)
def test_too_little_memory_is_not_damage(folder: Path, fault: Exception, monkeypatch) -> None:
    def load(*arguments, **more):
        raise fault

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(fault)):
        checkpoints.read_newest(folder.parent)
