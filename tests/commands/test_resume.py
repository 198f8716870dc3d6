"""A run that is stopped and killed wherever it is ends with the bits of one that was left alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR1
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from mambabyte import checkpoints
from mambabyte.runs.metrics_csv import read_metrics
from tests import driver
from tests.conftest import SENTENCE, TINY

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

    def train(name: str, *overrides: str, **end: Any) -> int:
        places = [f"data.path={books}", f"data.folder={tmp_path}/prepared", f"run_dir={tmp_path / name}"]
        settings = [*TINY, "data=hf", *places, "callbacks.checkpoint_every=4", *QUICK, *overrides]
        return runs("train", *settings, log=tmp_path / f"{name}.log", **end).code

    return train


def assert_same_end(folder: Path, one: str, other: str, step: int = 12) -> None:
    assert driver.windows(folder / f"{one}.log") == driver.windows(folder / f"{other}.log")
    assert [row["step"] for row in rows(folder / one)] == list(range(2, step + 1, 2))
    assert rows(folder / one) == rows(folder / other)
    a, b = (checkpoints.read(folder / name) for name in (one, other))
    assert a.step == step
    assert_same(a.content, b.content)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.csv, but for what is the clock's and the machine's; empty cells and nan are the same here."""
    others = ("seconds", "bytes_per_second", "model_flops_utilization", "peak_memory_bytes")
    return [
        {key: value for key, value in row.items() if key not in others and value == value}
        for row in read_metrics(run_dir / "metrics.csv")
    ]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Two checkpoints hold the same bits of weights, optimizer and data. Only the clock's time differs, and
    Lightning's own counters of batches, which mean nothing once the accumulation has changed."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds", "run_dir", "workers", "loops"}:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        assert a == b, where


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
    assert train("parts", local, "data.workers=2", step=9, number=SIGUSR1) == 75
    assert train("parts", local, "data.workers=1") == 0
    assert_same_end(tmp_path, "whole", "parts")


def test_a_run_killed_at_twenty_random_instants_ends_with_the_same_bits(train, tmp_path: Path) -> None:
    """The instants are calls of functions, Python's and C's, so that a seed brings back what it found; a step
    makes about 13,000. Every third run is killed while it writes its first checkpoint, or soon after."""
    settings = [
        "data.streaming=true",
        "data.windows=packed",
        "data.block_windows=20",
        "trainer.on_spike=skip",
    ]
    settings += ["callbacks.checkpoint_every=3", "callbacks.validate_every=10", "trainer.micro_batch_size=4"]
    settings += ["trainer.max_steps=60"]
    spoilt = [7, 8, 31]
    assert train("whole", *settings, spoilt=spoilt) == 0
    draw = random.Random(0)
    for life in range(20):
        begin, most = ("saving", 25_000) if life % 3 == 2 else ("training", 90_000)
        end = {"begin": begin, "calls": draw.randrange(most)}
        assert train("parts", *settings, spoilt=spoilt, **end) == -SIGKILL, life
    assert train("parts", *settings, spoilt=spoilt) == 0
    assert_same_end(tmp_path, "whole", "parts", step=60)
    assert rows(tmp_path / "parts")[-1]["skipped_steps"] == 3
    spikes = [sorted((tmp_path / name / "spikes").iterdir()) for name in ("whole", "parts")]
    assert [path.name for path in spikes[0]] == [
        f"step_{step:08d}.{kind}" for step in spoilt for kind in ("json", "npz")
    ]
    for one, other in zip(*spikes, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_a_damaged_newest_checkpoint_counts_for_nothing(train, runs, tmp_path: Path) -> None:
    assert train("whole") == 0
    assert train("parts", step=10, number=SIGTERM) == 75  # leaves the steps 8 and 11
    folder = tmp_path / "parts" / "checkpoints"
    newest = folder / "step_00000011.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert train("parts", step=9, number=SIGKILL) == -SIGKILL
    said = [line for line in runs.last.err.splitlines() if "is damaged" in line]
    assert said == [f"mambabyte: '{newest}' is damaged; the checkpoint before it is used"]
    assert "resumes from step 8" in runs.last.err
    assert train("parts") == 0
    assert_same_end(tmp_path, "whole", "parts")

    for path in folder.glob("step_*.ckpt"):
        path.write_bytes(b"")
    assert train("parts") == 1
    assert runs.last.err.startswith("mambabyte: every checkpoint in ")
    assert "step_00000012.ckpt" in runs.last.err and "Traceback" not in runs.last.err
