"""A run that is stopped and killed in the middle of steps ends with the bits of one that was left alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pyarrow
import pyarrow.parquet
import pytest
import torch

from mambabyte import checkpoints
from tests import driver
from tests.commands.conftest import SENTENCE, TINY

QUICK = ["callbacks.sample_every=0", "callbacks.validate_every=0"]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet as PG19's: three shards to train on, of two row groups each."""
    folder = tmp_path_factory.mktemp("books")
    texts = ["".join(SENTENCE.format(n * i) for i in range(n % 5, 9)) for n in range(30)]
    for name, rows in {**{f"train-{n}": texts[n::3] for n in range(3)}, "validation-0": texts[:3]}.items():
        pyarrow.parquet.write_table(
            pyarrow.table({"text": rows}), folder / f"{name}.parquet", row_group_size=5
        )
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[driver.Runs]:
    runs = driver.Runs(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.close()


@pytest.fixture
def train(runs: driver.Runs, books: Path, tmp_path: Path):
    """train("name", "key=value", ..., step=3, number=SIGTERM) -> the run's exit code."""

    def train(name: str, *overrides: str, **end: int) -> int:
        places = [f"data.path={books}", f"data.folder={tmp_path}/prepared", f"run_dir={tmp_path / name}"]
        settings = [*TINY, "data=hf", *places, "callbacks.checkpoint_every=4", *QUICK, *overrides]
        return runs("train", *settings, log=tmp_path / f"{name}.log", **end).code

    return train


def assert_same_end(folder: Path, one: str, other: str) -> None:
    assert driver.windows(folder / f"{one}.log") == driver.windows(folder / f"{other}.log")
    a, b = (checkpoints.read(folder / name) for name in (one, other))
    assert a["global_step"] == b["global_step"] == 12
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_ended_three_times_sees_the_same_windows_and_ends_with_the_same_bits(
    workers: int, train, tmp_path: Path
) -> None:
    stream = ["data.streaming=true", "data.windows=contiguous", "data.block_windows=20"]
    stream.append(f"data.workers={workers}")
    assert train("whole", *stream) == 0
    assert train("parts", *stream, step=2, number=SIGTERM) == 75
    assert train("parts", *stream, step=5, number=SIGKILL) == -SIGKILL
    assert train("parts", *stream, step=9, number=SIGKILL) == -SIGKILL
    assert train("parts", *stream) == 0
    assert_same_end(tmp_path, "whole", "parts")


def test_a_local_run_ended_three_times_with_other_workers_each_time_ends_with_the_same_bits(
    train, tmp_path: Path
) -> None:
    local = "data.windows=packed"
    assert train("whole", local) == 0
    assert train("parts", local, "data.workers=2", step=2, number=SIGTERM) == 75
    assert train("parts", local, "data.workers=0", step=5, number=SIGKILL) == -SIGKILL
    assert train("parts", local, "data.workers=2", step=9, number=SIGKILL) == -SIGKILL
    assert train("parts", local, "data.workers=1") == 0
    assert_same_end(tmp_path, "whole", "parts")
