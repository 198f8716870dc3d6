"""A small corpus, a tiny model, and ranks to train it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import FILES, SENTENCE, TINY
from tests.training.distributed.ranks import End, Ranks

STEPS = 24


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that train a tiny model: 24 steps of 4 micro-batches, split between two ranks."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts").mkdir()
    for number in range(20):
        text = "".join(SENTENCE.format(number * i) for i in range(number % 4, 9))
        (folder / "texts" / f"{number:02}.txt").write_text(text)
    places = [f"data.path={folder}/texts", f"data.folder={folder}/prepared"]
    return [*TINY, *FILES, *places, f"trainer.max_steps={STEPS}", "callbacks.checkpoint_every=0"]


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def train(ranks: Ranks, settings: list[str]) -> Callable[..., End]:
    """train(2, run_dir, "key=value", ..., step=3, number=SIGTERM) -> how the ranks ended."""

    def train(count: int, run_dir: Path, *overrides: str, **end: int) -> End:
        return ranks(count, "train", *settings, f"run_dir={run_dir}", *overrides, **end)

    return train


@pytest.fixture(scope="session")
def alone(train: Callable[..., End], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, End]:
    """A run of one process: its directory (read-only) and the windows it saw."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    end = train(1, run_dir)
    assert end.codes == [0], end.err
    return run_dir, end
