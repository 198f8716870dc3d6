"""`mambabyte train +experiment=pg19` from the loopback hub ends with the same bits, even after faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest
import torch

from mambabyte import checkpoints
from tests import driver
from tests.hub.conftest import books_hub, shard
from tests.hub.server import Hub, reset, stall, status

SIZE = [
    "model.d_model=16",
    "model.n_layer=1",
    "context_length=64",
    "trainer.max_steps=24",
    "optimizer.warmup_steps=2",
    "trainer.global_batch_bytes=256",
    "trainer.micro_batch_size=2",
    "trainer.accelerator=cpu",
    "callbacks.validate_bytes=256",
    "callbacks.sample_bytes=8",
    "callbacks.checkpoint_every=6",
]
FOOTERS = [None] * 3
FIRST_SHARD = "data/train-00000-of-00003.parquet"


@dataclass
class World:
    hub: Hub
    folder: Path
    train: Callable[..., driver.Run]

    def assert_ends_as_the_undisturbed(self, name: str) -> None:
        assert driver.windows(self.folder / f"{name}.log") == driver.windows(self.folder / "whole.log")
        ours, whole = (checkpoints.read(self.folder / run) for run in (name, "whole"))
        assert ours.step == whole.step == 24
        for key, tensor in whole.state_dict.items():
            assert torch.equal(ours.state_dict[key], tensor), key


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The hub, and an undisturbed run from it in the folder `whole`."""
    folder = tmp_path_factory.mktemp("hub")
    hub = books_hub()
    hub.start()
    runs = driver.Runs(
        folder, HF_ENDPOINT=hub.endpoint, HF_HOME=str(folder / "home"), HF_HUB_DOWNLOAD_TIMEOUT="1"
    )

    def train(name: str, *overrides: str, **end: int) -> driver.Run:
        places = [f"data.folder={folder}/prepared", f"run_dir={folder / name}"]
        # our hub has another commit and fewer books
        settings = ["+experiment=pg19", "data.revision=null", "data.books=null", *SIZE, *places, *overrides]
        return runs("train", *settings, log=folder / f"{name}.log", **end)

    try:
        whole = train("whole")
        assert whole.code == 0, whole.err
        yield World(hub, folder, train)
    finally:
        runs.close()
        hub.stop()


def complaint(run: driver.Run) -> str:
    """The sentence that a run ends with."""
    assert run.code == 1, run.err
    assert "Traceback" not in run.err
    return run.err.splitlines()[-1].removeprefix("mambabyte: ")


def test_pg19_survives_temporary_faults(world: World) -> None:
    world.hub.faults += [*FOOTERS, reset, status(500), status(429, Retry_After="3"), None, stall]
    run = world.train("disturbed")
    assert run.code == 0, run.err
    assert world.hub.faults == []
    lines = [line for line in run.err.splitlines() if "trying again" in line]
    assert len(lines) == 4
    assert all(line.startswith("mambabyte: data/train-0000") for line in lines)
    assert "HTTP 500 Internal Server Error; trying again in 2 s (2 of 8)" in lines[1]
    assert "HTTP 429 Too Many Requests; trying again in 3 s (3 of 8)" in lines[2]
    assert "timed out; trying again in 1 s (1 of 8)" in lines[3]
    world.assert_ends_as_the_undisturbed("disturbed")


def test_pg19_stopped_killed_and_without_its_hub_ends_with_the_same_bits(world: World) -> None:
    hub, train = world.hub, world.train
    assert train("parts", step=5, number=SIGTERM).code == 75

    hub.faults += [*FOOTERS, None, None, *[status(503)] * 9]  # while training is running
    said = complaint(train("parts", "data.retries=1", "data.workers=1"))
    assert said.startswith("gave up on data/train-0000")
    assert "after 2 tries: HTTP 503 Service Unavailable; repeat the command when" in said
    hub.faults.clear()

    assert train("parts", step=15, number=SIGKILL).code == -SIGKILL

    hub.stop()
    said = complaint(train("parts", "data.retries=0"))
    assert said.startswith("gave up on the hub's entry of emozilla/pg19 after 1 tries: ")
    hub.start()

    whole = hub.files[FIRST_SHARD]
    hub.files[FIRST_SHARD] = whole[:-1]
    assert "is not a whole parquet file" in complaint(train("parts"))
    hub.files[FIRST_SHARD] = shard(range(900, 908))
    assert "(the training data)" in complaint(train("parts"))
    before, hub.commit = hub.commit, "d" * 40
    said = complaint(train("parts", "data.revision=main"))
    assert said.startswith(
        f"emozilla/pg19 has changed on the hub since this run began: it was commit {before}"
    )
    hub.commit, hub.files[FIRST_SHARD] = before, whole

    run = train("parts")
    assert run.code == 0, run.err
    assert "resumes from step 12" in run.err
    world.assert_ends_as_the_undisturbed("parts")
