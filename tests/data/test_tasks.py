"""The synthetic tasks: what a sequence holds, that it depends on seed and position alone, and resuming."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mambabyte.data import (
    ByteDataModule,
    CopyingTask,
    DataSettings,
    InductionHeadsTask,
    MixtureSource,
    SelectiveCopyingTask,
)
from mambabyte.data.tasks import MARKER, NOISE, Task, TaskSequences, TaskWindows
from mambabyte.data.windows.policies import Window
from mambabyte.errors import UserError

TASKS = [
    CopyingTask(tokens=3, vocabulary=6),
    SelectiveCopyingTask(tokens=3, vocabulary=6),
    InductionHeadsTask(vocabulary=5),
]
NAMES = [type(task).__name__ for task in TASKS]


def solved(task: Task, window: Window) -> list[list[int]]:
    """The answers to each row, found from its bytes alone, by the rule of the task."""
    answers = []
    for row in window["bytes"].tolist():
        if isinstance(task, CopyingTask):
            answers.append([byte for byte in row if byte not in (NOISE, MARKER)])
        else:
            answers.append([row[row.index(MARKER) + 1]])
    return answers


def text(row: np.ndarray) -> str:
    return row.astype(np.uint8).tobytes().decode()


def windows(task: Task, length: int = 12, seed: int = 0, split: str = "train") -> TaskWindows:
    return TaskWindows(task, length, split, seed)


def test_the_first_sequences_are_these() -> None:
    """Written down once: another version must make the same, or resumed runs go on with other data."""
    shown = [text(windows(task).batch(np.arange(1))["bytes"][0]) for task in TASKS]
    assert shown == ["dcd......???", "....d.c.d???", "dcdbcbdd?ba?"]


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_the_answers_are_scored_and_nothing_else(task: Task) -> None:
    batch = windows(task).batch(np.arange(200))
    asked = batch["targets"] != -100
    count = task.tokens if isinstance(task, CopyingTask) else 1
    assert (asked == (np.arange(12) >= 12 - count)).all(), "the answers are at the last bytes"
    assert (batch["bytes"][asked] == MARKER).all()
    assert [row[row >= 0].tolist() for row in batch["targets"]] == solved(task, batch)
    assert (batch["document_start"] == (np.arange(12) == 0)).all()
    assert {name: array.dtype for name, array in batch.items()} == {
        "bytes": np.uint8,
        "targets": np.int16,
        "document_start": np.bool_,
    }


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_every_symbol_and_every_place_occurs_about_equally_often(task: Task) -> None:
    batch = windows(task).batch(np.arange(3000))
    answers = np.unique(batch["targets"][batch["targets"] >= 0], return_counts=True)
    assert answers[0].tolist() == [ord("a") + i for i in range(task.contents)]
    assert answers[1].min() > 0.85 * answers[1].mean()  # 3,000 draws of 4: 0.85 is 5 standard deviations
    if isinstance(task, SelectiveCopyingTask):
        places = (batch["bytes"][:, :9] >= ord("a")).sum(axis=0)
    elif isinstance(task, InductionHeadsTask):
        places = (batch["bytes"][:, :10] == MARKER).sum(axis=0)
    else:
        places = np.full(3, (batch["bytes"][:, :3] >= ord("a")).sum() / 3)
    assert places.min() > 0.7 * places.mean()  # 300 of 3,000: 0.7 is 5 standard deviations
    assert len(np.unique(batch["bytes"], axis=0)) > 50


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_a_sequence_depends_on_seed_stream_and_position_alone(task: Task) -> None:
    length = 64
    whole = windows(task, length).batch(np.arange(40))
    for positions in ([7], [39, 3], list(range(11, 20))):
        part = pickle.loads(pickle.dumps(windows(task, length))).__getitems__(positions)
        assert all((part[name] == whole[name][positions]).all() for name in whole)
    for other in (windows(task, length, seed=1), windows(task, length, split="validation")):
        assert not (other.batch(np.arange(40))["bytes"] == whole["bytes"]).all(axis=1).any()
    held_out = TaskSequences(task, length, 40).batch(np.arange(40))
    assert (held_out["bytes"] == windows(task, length, 0, "validation").batch(np.arange(40))["bytes"]).all()


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_the_shortest_sequence_is_whole_and_a_shorter_one_refused(task: Task) -> None:
    batch = windows(task, task.shortest).batch(np.arange(50))
    assert [row[row >= 0].tolist() for row in batch["targets"]] == solved(task, batch)
    with pytest.raises(UserError, match=f"sequences have {task.shortest} bytes or more"):
        windows(task, task.shortest - 1)


def test_the_published_set_up() -> None:
    """4,096 bytes that hold 16 of 14 kinds, then 16 markers: 16 symbols with noise and marker."""
    batch = TaskWindows(SelectiveCopyingTask(), 4112, "train", 0).batch(np.arange(8))
    assert ((batch["bytes"] != NOISE) & (batch["bytes"] != MARKER)).sum(axis=1).tolist() == [16] * 8
    assert (batch["bytes"][:, :4096] == MARKER).sum() == 0
    assert len(np.unique(batch["bytes"])) == 16


def test_a_fingerprint_tells_apart_what_differs() -> None:
    base = TaskSequences(TASKS[0], 12, 10)
    assert base.fingerprint == TaskSequences(CopyingTask(tokens=3, vocabulary=6), 12, 10).fingerprint
    others = [
        TaskSequences(TASKS[1], 12, 10),
        TaskSequences(TASKS[0], 13, 10),
        TaskSequences(TASKS[0], 12, 11),
        TaskSequences(TASKS[0], 12, 10, "test"),
        TaskSequences(CopyingTask(tokens=3, vocabulary=7), 12, 10),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 6


def module(tmp_path: Path, micro_batch_size: int = 2, seed: int = 0, **changes: object) -> ByteDataModule:
    source = {"_target_": "mambabyte.data.SelectiveCopyingTask", "tokens": 3, "vocabulary": 6}
    settings = {"folder": tmp_path / "none", "validation_bytes": 240, **changes}
    return ByteDataModule(DataSettings(source=source, **settings), 12, micro_batch_size, 8, seed)


def steps(data: ByteDataModule, first: int, last: int, **ranks: int) -> list[bytes]:
    batches = data.train_batches(first, last, **ranks)
    return [row.numpy().tobytes() for batch in batches for row in batch["bytes"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_resumes_exactly_and_writes_nothing(workers: int, tmp_path: Path) -> None:
    data = module(tmp_path, workers=workers)
    data.prepare_data()
    whole = steps(data, 0, 6)
    assert len(set(whole)) == len(whole) == 48
    saved = json.loads(json.dumps(data.state_dict()))
    resumed = module(tmp_path, micro_batch_size=4, workers=workers)
    resumed.load_state_dict(saved)
    assert steps(resumed, 2, 6) == whole[16:]
    halves = [steps(module(tmp_path), 0, 6, rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(halves[0] + halves[1]) == sorted(whole)
    assert not (tmp_path / "none").exists()
    other = module(tmp_path, seed=1)
    other.load_state_dict(saved)
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        steps(other, 2, 3)


def test_the_validation_sequences_are_as_many_as_their_bytes(tmp_path: Path) -> None:
    found = module(tmp_path).validation_data()
    assert isinstance(found, TaskSequences)
    assert (found.count, found.context_length, found.max_bytes) == (20, 12, None)
    data = module(tmp_path).settings
    limited = data.task_sequences(12, max_bytes=60)
    assert (limited.count, limited.max_bytes) == (5, 60)
    assert data.task_sequences(1000).count == 1, "at least one"
    first = limited.batch(np.arange(5))["bytes"]
    assert (first == found.batch(np.arange(5))["bytes"]).all()


def test_a_window_says_which_sequence_it_is(tmp_path: Path) -> None:
    assert windows(TASKS[0]).origin(7) == {"sequence": 7}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"windows": "packed"}, "data.windows=packed cuts documents"),
        ({"validation_bytes": None}, "data.validation_bytes must be a number"),
        ({"streaming": True}, "data.streaming=true needs a source that can be streamed"),
    ],
    ids=["windows", "validation_bytes", "streaming"],
)
def test_what_a_task_cannot_obey_is_refused(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        module(tmp_path, **changes)


def test_a_task_is_neither_prepared_nor_mixed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no documents to prepare, inspect, mix or train"):
        module(tmp_path).settings.prepare("validation")
    with pytest.raises(UserError, match=r"data.parts.a: data=copying is a task"):
        MixtureSource(parts={"a": {"data": "copying"}})


def test_tensors_of_a_batch_train_a_model(tmp_path: Path) -> None:
    (batch,) = list(module(tmp_path, micro_batch_size=8).train_batches(0, 1))
    assert batch["bytes"].dtype == torch.uint8 and batch["targets"].dtype == torch.int16
    assert batch["bytes"].shape == (8, 12)
