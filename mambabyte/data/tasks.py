"""Synthetic tasks, whose answers only a model that remembers the right bytes can give.

Sequences are made, not read: a pure function of the task, its seed and a position. In each, only the answers
are scored; every other target is -100. The symbols are bytes: content from ``a`` (97) upwards, noise ``.``
(46) and a marker ``?`` (63). The set-ups are those of Mamba (arXiv 2312.00752, section 4.1 and appendix E.1).
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from mambabyte.config.settings import Settings, setting
from mambabyte.data.sources.documents import Document
from mambabyte.data.windows.permutation import hash64, random_words
from mambabyte.data.windows.policies import NOT_SCORED, Window
from mambabyte.errors import UserError

FIRST_CONTENT, NOISE, MARKER = ord("a"), ord("."), ord("?")
_STREAMS = {"train": 0, "validation": 1, "test": 2}


@dataclass
class Task(Settings):
    """Base of the tasks. A task is a source without documents: the length of its sequences is that of the
    windows, ``context_length``.

    Attributes:
        vocabulary: how many different bytes occur, noise and marker included.
    """

    section: ClassVar[str] = "data"
    vocabulary: int = setting(default=16, at_least=3, at_most=160)

    @property
    @abstractmethod
    def shortest(self) -> int:
        """The least ``context_length``, in bytes."""

    @property
    @abstractmethod
    def contents(self) -> int:
        """How many different bytes an answer can be; 1 / contents is the accuracy of guessing."""

    @abstractmethod
    def write(self, words: np.ndarray, bytes: np.ndarray, targets: np.ndarray) -> None:
        """Make one sequence.

        Args:
            words: (2, L) uint64, random.
            bytes: (L,) uint8, to be filled.
            targets: (L,) int16, -100 throughout; the answers are to be put in.
        """

    def identity(self) -> dict[str, Any]:
        return {"source": type(self).__name__, "version": 1, **asdict(self)}

    def documents(self, split: str) -> Iterator[Document]:
        raise UserError(
            "this data is a task, whose sequences are made while they are read: there are no documents to "
            "prepare, inspect, mix or train a drafter on"
        )


@dataclass
class CopyingTask(Task):
    """``abcd........????``: some bytes, then noise, then a marker for each byte, at which it is the answer.

    The distance from a byte to its answer is the same in all sequences, so a convolution can solve it.
    """

    tokens: int = setting(default=16, at_least=1, at_most=2**20)

    @property
    def shortest(self) -> int:
        return 2 * self.tokens

    @property
    def contents(self) -> int:
        return self.vocabulary - 2

    def write(self, words: np.ndarray, bytes: np.ndarray, targets: np.ndarray) -> None:
        before = len(bytes) - self.tokens
        content = FIRST_CONTENT + words[0, : self.tokens] % self.contents
        bytes[:before] = NOISE
        bytes[self._places(words[1, :before])] = content
        bytes[before:] = MARKER
        targets[before:] = content

    def _places(self, words: np.ndarray) -> np.ndarray:
        """Where the bytes to remember stand, ascending."""
        return np.arange(self.tokens)


@dataclass
class SelectiveCopyingTask(CopyingTask):
    """``.a..b...cd..????``: as `CopyingTask`, with the bytes at random places in the noise, so that a model
    has to choose by content what it remembers."""

    def _places(self, words: np.ndarray) -> np.ndarray:
        if self.tokens == len(words):
            return np.arange(self.tokens)
        return np.sort(np.argpartition(words, self.tokens)[: self.tokens])


@dataclass
class InductionHeadsTask(Task):
    """``bd?acbba…c?``: random bytes with a marker in a random place and again at the end, where the answer is
    the byte that followed the first (Olsson et al. 2022, in the form of H3, arXiv 2212.14052)."""

    @property
    def shortest(self) -> int:
        return 3

    @property
    def contents(self) -> int:
        return self.vocabulary - 1

    def write(self, words: np.ndarray, bytes: np.ndarray, targets: np.ndarray) -> None:
        bytes[:] = FIRST_CONTENT + words[0] % self.contents
        place = int(words[1, 0] % (len(bytes) - 2))
        bytes[[place, -1]] = MARKER
        targets[-1] = bytes[place + 1]


class TaskWindows:
    """The endless sequences of one stream of a task; a map-style data set for a data loader.

    Args:
        split: "train", "validation" or "test", whose streams differ.
        seed: of the stream.

    Raises:
        UserError: the sequences are too short for the task.
    """

    def __init__(self, task: Task, context_length: int, split: str, seed: int) -> None:
        if context_length < task.shortest:
            raise UserError(
                f"context_length={context_length} is too short for this task, whose sequences have "
                f"{task.shortest} bytes or more: raise it, or lower data.tokens"
            )
        self.task, self.context_length = task, context_length
        self._split, self._seed = split, seed

    def batch(self, positions: np.ndarray) -> Window:
        """The sequences at (b,) positions, stacked."""
        shape = len(positions), self.context_length
        batch = Window(
            bytes=np.empty(shape, dtype=np.uint8),
            targets=np.full(shape, NOT_SCORED, dtype=np.int16),
            document_start=np.zeros(shape, dtype=bool),
        )
        batch["document_start"][:, 0] = True
        for row, position in enumerate(positions.tolist()):
            key = hash64(self._seed, _STREAMS[self._split], position)
            words = random_words(key, 2 * self.context_length).reshape(2, -1)
            self.task.write(words, batch["bytes"][row], batch["targets"][row])
        return batch

    def __getitems__(self, positions: list[int]) -> Window:
        return self.batch(np.array(positions))

    def origin(self, position: int) -> dict[str, Any]:
        """Which sequence of the stream stands at a position."""
        return {"sequence": position}


class TaskSequences:
    """A split to measure on: the first ``count`` sequences of a stream that training never sees. Its seed is
    fixed, so that runs of any seed are measured on the same.

    Args:
        max_bytes: what limited ``count`` beside the split's own size, if anything; recorded with the figure.

    Raises:
        UserError: as `TaskWindows`; or the split is that of training.
    """

    def __init__(
        self,
        task: Task,
        context_length: int,
        count: int,
        split: str = "validation",
        max_bytes: int | None = None,
    ) -> None:
        if split == "train":
            raise UserError(
                "the training sequences of a task differ with the seed and never end: measure "
                "split=validation or split=test"
            )
        self.task, self.context_length, self.count, self.split = task, context_length, count, split
        self.max_bytes = max_bytes
        self._windows = TaskWindows(task, context_length, split, seed=0)

    def batch(self, positions: np.ndarray) -> Window:
        """The sequences at (b,) positions, each below ``count``, stacked."""
        return self._windows.batch(positions)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of what the sequences depend on."""
        parts = [self.task.identity(), self.split, self.context_length, self.count]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
