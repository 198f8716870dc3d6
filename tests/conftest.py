"""What every test shares: one thread, a small corpus, and commands run in this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mambabyte import commands
from mambabyte.commands import train
from mambabyte.training.settings import TrainSettings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a script's background job; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SENTENCE = "the quick brown fox jumps over the lazy dog, {} times a day. "

FILES = ["data=files", "data.windows=packed", "data.validation_fraction=0.2"]
TINY = [
    "model.d_model=32",
    "model.n_layer=2",
    "context_length=32",
    "trainer.max_steps=12",
    "trainer.global_batch_bytes=256",
    "trainer.micro_batch_size=2",
    "trainer.accelerator=cpu",
    "trainer.precision=fp32",  # for equal bits, wherever the tests run
    "optimizer.warmup_steps=2",
    "optimizer.learning_rate=1e-2",
    "callbacks.log_every=2",
    "callbacks.validate_every=6",
    "callbacks.validate_bytes=200",
    "callbacks.sample_every=6",
    "callbacks.sample_bytes=16",
    "callbacks.checkpoint_every=5",
]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(20):
        text = "".join(SENTENCE.format(number * i) for i in range(number % 4, 9))
        (folder / f"{number:02}.txt").write_text(text)
    return folder


@pytest.fixture
def configure() -> Callable:
    """configure("train", "key=value", ...) -> the command's settings."""
    return lambda command, *overrides: commands.find(command).settings.compose(*overrides)


@pytest.fixture
def start(configure: Callable, corpus: Path, tmp_path: Path) -> Callable:
    """start("name", "key=value", ...) trains the tiny model and returns its run directory."""

    def start(name: str, *overrides: str) -> Path:
        run_dir = tmp_path / "runs" / name
        places = [f"name={name}", f"run_dir={run_dir}", f"data.folder={tmp_path}/prepared"]
        if not any(override.startswith("data=") for override in overrides):
            places += [*FILES, f"data.path={corpus}"]
        train.run(configure("train", *TINY, *places, *overrides))
        return run_dir

    return start


@pytest.fixture(scope="session")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished tiny run, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run_dir = folder / "runs" / "finished"
    places = [
        "name=finished",
        f"run_dir={run_dir}",
        f"data.path={corpus}",
        f"data.folder={folder}/prepared",
        *FILES,
    ]
    train.run(TrainSettings.compose(*TINY, *places))
    return run_dir


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread here and in the processes that tests start: a second only slows models this small."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
