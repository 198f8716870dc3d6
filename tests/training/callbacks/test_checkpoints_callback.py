"""Checkpoints under SIGKILL, between all system calls of a write."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from mambabyte import checkpoints
from mambabyte.checkpoints.paths import step_file
from mambabyte.training.callbacks.checkpoints import Checkpoints

CHANGES = {"fsync", "replace", "symlink", "unlink"}  # killed before and after these
CALLS = {"open", "write", "flush", "close", *CHANGES}  # killed before these


class Trainer:
    """The parts of a trainer and of the training module that saving needs."""

    is_global_zero = True

    def __init__(self, step: int) -> None:
        self.global_step = step

    def save_checkpoint(self, path: Path) -> None:
        ours = {"format": checkpoints.FORMAT, "model": {}}
        weights = {"model.weight": torch.full((100,), float(self.global_step))}
        checkpoints.write({"mambabyte": ours, "state_dict": weights, "global_step": self.global_step}, path)

    def excluded_from_timing(self) -> nullcontext[None]:
        return nullcontext()

    def check_spikes(self, wait: bool) -> None:
        pass


def save(folder: Path, step: int) -> None:
    """Save one checkpoint, as a process of its own would."""
    callback, trainer = Checkpoints(folder, every=1, kept=2), Trainer(step)
    callback.on_train_start(trainer, trainer)  # type: ignore[arg-type]
    callback.save(trainer, trainer)  # type: ignore[arg-type]


def save_and_die(folder: Path, step: int, calls: int) -> bool:
    """Save in a process that is killed at one of its calls. Returns False if it finished before that."""
    child = os.fork()
    if child == 0:
        left = calls

        def count(frame: Any, event: str, function: Any) -> None:
            nonlocal left
            at = {"c_call": CALLS, "c_return": CHANGES}.get(event, ())
            if getattr(function, "__name__", "") in at:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            save(folder, step)
            sys.setprofile(None)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def found(folder: Path) -> int:
    newest = checkpoints.read_newest(folder.parent)
    assert newest is not None
    saved, damaged = newest
    assert damaged == []
    step = saved.step
    assert saved.path == step_file(folder, step)
    assert torch.equal(saved.state_dict["weight"], torch.full((100,), float(step)))
    return step


def test_a_kill_at_any_call_leaves_an_intact_checkpoint_and_no_obstacle(tmp_path: Path) -> None:
    before = tmp_path / "before" / "checkpoints"
    for step in (1, 2):
        save(before, step)
    reached = set()
    calls, folder = 0, tmp_path / "run" / "checkpoints"
    while True:
        shutil.copytree(before, folder, symlinks=True)
        if not save_and_die(folder, 3, calls):
            break
        reached.add((found(folder), len(list(folder.glob("step_*.ckpt"))), (folder / "last.ckpt").exists()))
        save(folder, 4)  # the next process
        names = sorted(path.name for path in folder.iterdir())
        assert found(folder) == 4
        assert names[:2] == ["last.ckpt", names[1]] and names[2:] == ["step_00000004.ckpt"], names
        assert (folder / "last.ckpt").resolve().name == "step_00000004.ckpt"
        shutil.rmtree(folder.parent)
        calls += 1
    # killed before the rename, and between the rename and the removal of the oldest
    assert reached == {(2, 2, True), (3, 3, True), (3, 2, True)}


def test_a_damaged_newer_file_does_not_displace_intact_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    save(folder, 5)
    step_file(folder, 20).write_bytes(b"damaged")  # resumed from 5, the run will reach this step again
    callback, trainer = Checkpoints(folder, every=5, kept=1), Trainer(10)
    callback.save(trainer, trainer)  # type: ignore[arg-type]
    assert sorted(path.name for path in folder.iterdir()) == [
        "last.ckpt",
        "step_00000010.ckpt",
        "step_00000020.ckpt",
    ]
    for trainer.global_step in (15, 20):
        callback.save(trainer, trainer)  # type: ignore[arg-type]
    assert found(folder) == 20
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step_00000020.ckpt"]
