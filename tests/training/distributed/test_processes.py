"""Ranks in real processes: what happens when one is killed or all are told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mambabyte import checkpoints
from tests.training.distributed.ranks import free_port

A_MINUTE = 60
TRAIN = ["-m", "mambabyte", "train"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2"]


def children(process: int) -> list[int]:
    """The ids of the running child processes of ``process``."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(process)], capture_output=True, text=True)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "Z" not in line.split()[1]]


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class Job:
    """An endless run, its output in files, with the processes that belong to it."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.run_dir, self.err = folder / "run", folder / "err"
        with (folder / "out").open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *command, f"run_dir={self.run_dir}", "callbacks.log_every=1"],
                stdout=out,
                stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def wait_for_steps(self) -> None:
        metrics = self.run_dir / "metrics.csv"

        def stepped() -> bool:
            assert self.process.poll() is None, self.err.read_text()
            return metrics.exists() and metrics.read_text().count("\n") > 2

        wait_until(stepped, 240)
        self.ranks = children(self.process.pid)

    def wait_for_end(self) -> int:
        """The exit code; the process and its ranks must end within a minute."""
        wait_until(lambda: not any(map(running, [self.process.pid, *self.ranks])), A_MINUTE)
        return self.process.wait()

    def sentences(self) -> list[str]:
        return [line for line in self.err.read_text().splitlines() if line.startswith("mambabyte: ")]


@pytest.fixture
def start(settings: list[str], tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """start("-m", ..., "key=value") -> a job that has taken steps and runs until it is stopped."""
    jobs: list[Job] = []

    def start(*command: str) -> Job:
        endless = ["trainer.max_steps=1000000", "callbacks.validate_every=0", "callbacks.sample_every=0"]
        jobs.append(Job(tmp_path, *command, *settings, *endless))
        jobs[-1].wait_for_steps()
        return jobs[-1]

    yield start
    for job in jobs:
        try:
            os.killpg(job.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        job.process.wait()


def test_a_killed_rank_ends_the_rank_that_started_it(start: Callable[..., Job]) -> None:
    job = start(*TRAIN, "trainer.devices=2")
    assert len(job.ranks) == 1
    os.kill(job.ranks[0], signal.SIGKILL)
    assert job.wait_for_end() == 1
    assert any("rank" in sentence and "repeat the command" in sentence for sentence in job.sentences())
    assert "Traceback" not in job.err.read_text()


def test_a_killed_rank_0_ends_the_ranks_that_it_started(start: Callable[..., Job]) -> None:
    job = start(*TRAIN, "trainer.devices=2")
    job.process.kill()
    assert job.wait_for_end() == -signal.SIGKILL
    assert any("repeat the command" in sentence for sentence in job.sentences())
    assert "Traceback" not in job.err.read_text()


def test_sigterm_to_rank_0_stops_all_ranks_that_it_started(start: Callable[..., Job]) -> None:
    job = start(*TRAIN, "trainer.devices=2")
    job.process.terminate()
    assert job.wait_for_end() == 75
    assert job.sentences()[-1].startswith("mambabyte: stopped at step")
    assert len(os.listdir(job.run_dir / "checkpoints")) == 2  # the one saved, and last.ckpt
    assert checkpoints.read(job.run_dir).step > 1


def test_under_torchrun_a_killed_rank_ends_all(start: Callable[..., Job]) -> None:
    job = start(*TORCHRUN, f"--master-port={free_port()}", *TRAIN, "trainer=ddp")
    assert len(job.ranks) == 2
    os.kill(job.ranks[1], signal.SIGKILL)
    assert job.wait_for_end() == 1
    assert any("repeat the command" in sentence for sentence in job.sentences())
