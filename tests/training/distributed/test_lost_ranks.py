"""A rank that is lost without a word ends the others with a sentence; a slow one does not."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from mambabyte.training.distributed import lost_ranks
from mambabyte.training.distributed.lost_ranks import LostRanks
from mambabyte.training.settings import TrainSettings
from mambabyte.training.trainer import build_trainer
from tests.training.distributed.ranks import environment, free_port

LIMIT = 2.5


def fork(rank: int, port: int, work: Callable[[int], None], err: Path) -> int:
    """A rank in a process of its own, which has the signs of life of a run that trains; its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        sys.stderr = err.open("w")
        os.environ.update(environment(rank, 2, port))
        lost_ranks.SIGN_SECONDS, lost_ranks.LONGEST_SILENCE = 0.1, LIMIT
        distributed.init_process_group("gloo")
        callback = LostRanks()
        callback.on_train_start(SimpleNamespace(global_rank=rank, world_size=2), None)
        work(rank)
        callback.on_train_end(None, None)
        code = 0
    finally:
        os._exit(code)


@pytest.fixture
def run(tmp_path: Path):
    """run(work) -> the exit code of rank 0 and what it wrote, of two ranks that do work(rank)."""
    children: list[int] = []

    def run(work: Callable[[int], None]) -> tuple[int, str]:
        port = free_port()
        children.extend(fork(rank, port, work, tmp_path / f"err{rank}") for rank in (0, 1))
        deadline = time.monotonic() + 60
        while (ended := os.waitpid(children[0], os.WNOHANG))[0] == 0:
            assert time.monotonic() < deadline, "rank 0 waits for ever"
            time.sleep(0.05)
        del children[0]
        return os.waitstatus_to_exitcode(ended[1]), (tmp_path / "err0").read_text()

    yield run
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_rank_of_which_nothing_is_heard_ends_the_others(run) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)  # as a lost node: its connections stay open
        distributed.all_reduce(torch.ones(1))

    code, err = run(work)
    assert code == 1
    assert err.startswith("mambabyte: rank 1 has given no sign of life for")
    assert "repeat the command" in err
    assert err.count("\n") == 1


def test_a_rank_may_keep_the_others_waiting(run) -> None:
    def work(rank: int) -> None:
        if rank == 0:
            time.sleep(2 * LIMIT)  # a checkpoint on a slow disk
        distributed.all_reduce(torch.ones(1))

    assert run(work) == (0, "")


def test_every_run_of_several_ranks_listens(tmp_path: Path) -> None:
    for ranks in (1, 2):
        devices = ["trainer.accelerator=cpu", f"trainer.devices={ranks}", "trainer.micro_batch_size=1"]
        settings = TrainSettings.compose("experiment=tiny", f"run_dir={tmp_path}", *devices)
        trainer = build_trainer(settings, [], [])
        assert any(isinstance(each, LostRanks) for each in trainer.callbacks) is (ranks == 2)


def test_a_job_that_is_suspended_as_a_whole_finds_nobody_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(lost_ranks, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(lost_ranks, "TCPStore", lambda *arguments, **options: None)
    thread = SimpleNamespace(start=lambda: None, join=lambda timeout: None)
    monkeypatch.setattr(lost_ranks.threading, "Thread", lambda **options: thread)
    monkeypatch.setattr(lost_ranks, "exit_on", lambda problem: None)
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    callback = LostRanks()
    callback.on_train_start(SimpleNamespace(global_rank=0, world_size=2), None)
    now = 10_000.0
    assert callback._problem() is None
    looks = 0
    while callback._problem() is None:
        now += 0.5
        looks += 1
    assert lost_ranks.LONGEST_SILENCE - 2 < looks / 2 < lost_ranks.LONGEST_SILENCE + 2
    callback.on_train_end(None, None)
    assert callback._problem() == ""
