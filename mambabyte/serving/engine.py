"""The thread that owns the model: it reads prompts piece by piece and writes the texts of all clients in one
batch, so that each waits for the others' next byte only."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mambabyte.errors import UserError
from mambabyte.generation import Batch, Context, Row, read_pieces
from mambabyte.generation.context import EMPTY_PROMPT
from mambabyte.generation.sampler import NO_PROBABILITIES
from mambabyte.models import ByteLM
from mambabyte.serving.errors import busy, shutting_down
from mambabyte.serving.limits import Limits

# Bytes of a prompt that are read between two steps of the batch. It is always the same, since a state that is
# reached in other pieces differs in its last bits.
PIECE = 512
Logits = NDArray[np.float32]


class PromptRead(NamedTuple):
    """A piece of a prompt has been read.

    logits: (len(piece), 256), from which each of its bytes was predicted, if the job asks for echo and
        logits; NaN for a text's first byte.
    """

    prompt: int
    piece: bytes
    logits: Logits | None


class Written(NamedTuple):
    """A byte has been drawn, and some text is certain: see `mambabyte.generation.Drawn`.

    logits: (256,), if the job asks for them.
    """

    choice: int
    byte: int
    text: bytes
    logits: Logits | None


class Ended(NamedTuple):
    """A choice is complete. A job's last one ends it."""

    choice: int
    reason: Literal["length", "stop"]


class Failed(NamedTuple):
    """The job has ended without all of its choices."""

    fault: Exception


Event = PromptRead | Written | Ended | Failed


@dataclass(eq=False)
class Job:
    """One request: prompts, each of them continued by some rows. Choices are numbered through.

    tell: is called from the engine's thread with what happens, in order.
    echo: whether to tell of the prompts' bytes too.
    logits: whether to tell the logits of each byte.
    """

    prompts: Sequence[tuple[bytes, Sequence[Row]]]
    tell: Callable[[Event], None]
    echo: bool = False
    logits: bool = False
    cancelled: bool = False  # set by Engine.cancel
    choices: dict[Row, int] = field(init=False)

    def __post_init__(self) -> None:
        rows = [row for _, rows in self.prompts for row in rows]
        self.choices = {row: i for i, row in enumerate(rows)}


class _Reading:
    """A prompt that is being read."""

    def __init__(self, model: ByteLM, job: Job, number: int) -> None:
        self.job, self._number = job, number
        self._prompt, self.rows = job.prompts[number]
        self._pieces = _read(model, self._prompt or EMPTY_PROMPT, job.echo and job.logits)

    def read_on(self) -> Context | None:
        """Read one more piece; the context once all has been read."""
        piece, context, logits = next(self._pieces)
        if self._prompt and self.job.echo:
            self.job.tell(PromptRead(self._number, piece, logits))
        return context if context.length >= len(self._prompt) else None


class Engine:
    """Writes the texts of many jobs at once, in a thread of its own.

    Args:
        model: in eval mode. Nothing else may use it while the engine runs.
        new_batch: an empty batch of this model's; a faulty one is replaced.
    """

    def __init__(self, model: ByteLM, new_batch: Callable[[], Batch], limits: Limits) -> None:
        self._model, self._new_batch, self._limits = model, new_batch, limits
        self._batch = new_batch()
        self._thread = threading.Thread(target=self._run, name="mambabyte-engine", daemon=True)
        self._changed = threading.Condition()  # guards the four below
        self._waiting: deque[Job] = deque()
        self._admitted: deque[Job] = deque()  # have room, and are taken up by the thread
        self._taken_rows = 0
        self._closed = False
        # The thread's own:
        self._reading: deque[_Reading] = deque()
        self._writing: dict[Row, Job] = {}
        self._left: dict[Job, set[Row]] = {}  # rows of each job that have not ended

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End all jobs, and the thread with them, after the step that it is in."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self) -> None:
        self._thread.join()

    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    def load(self) -> tuple[int, int]:
        """Rows that are taken, and jobs that wait."""
        with self._changed:
            return self._taken_rows, len(self._waiting)

    def submit(self, job: Job) -> None:
        """Begin a job now, or when there is room for all of its rows, in the order of the calls.

        Raises:
            ApiError: too many wait already, or the engine is closed.
        """
        with self._changed:
            if self._closed:
                raise shutting_down()
            self._waiting.append(job)
            self._admit()
            if len(self._waiting) > self._limits.max_queue:
                self._waiting.pop()
                raise busy()
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up; nothing happens if it has ended."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._admit()
            self._changed.notify()

    def _admit(self) -> None:
        while self._waiting and self._taken_rows + len(self._waiting[0].choices) <= self._limits.max_rows:
            job = self._waiting.popleft()
            self._taken_rows += len(job.choices)
            self._admitted.append(job)

    def _run(self) -> None:
        try:
            while self._take_up():
                for job in [job for job in self._left if job.cancelled]:
                    self._give_up(job)
                if self._reading:
                    self._read_piece()
                if self._writing:
                    self._step()
        finally:  # also after a fault of the engine's own, so that nobody waits for ever
            with self._changed:
                self._closed = True
                remaining = [*self._left, *self._admitted, *self._waiting]
                self._waiting.clear()
            for job in remaining:
                job.tell(Failed(shutting_down()))

    def _take_up(self) -> bool:
        """Take up the jobs that were admitted, waiting for one if there is nothing else; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._admitted or self._left)
            if self._closed:
                return False
            jobs = list(self._admitted)
            self._admitted.clear()
        for job in jobs:
            self._left[job] = set(job.choices)
            self._reading.extend(_Reading(self._model, job, i) for i in range(len(job.prompts)))
        return True

    def _read_piece(self) -> None:
        """One piece of the next prompt; they take turns, so that a long one does not hold up a short one."""
        reading = self._reading.popleft()
        try:
            context = reading.read_on()
            if context is not None and not torch.isfinite(context.logits.max()):
                raise UserError(NO_PROBABILITIES)  # before it spoils a batch with others
        except Exception as fault:
            self._fail([reading.job], fault)
            return
        if context is None:
            self._reading.append(reading)
        else:
            self._write(reading, context)

    def _write(self, reading: _Reading, context: Context) -> None:
        for row in reading.rows:
            if row.length == 0:
                self._end(reading.job, row, "length")
        rows = [row for row in reading.rows if row.length]
        try:
            self._batch.add(context, rows)
        except Exception as fault:
            self._renew_batch([reading.job], fault)
        else:
            self._writing |= dict.fromkeys(rows, reading.job)

    def _step(self) -> None:
        try:
            drawn = self._batch.step()
        except Exception as fault:
            self._renew_batch([], fault)
            return
        for row, byte, text, logits in drawn:
            job = self._writing[row]
            # A copy, since each row's logits are a part of the whole batch's.
            job.tell(Written(job.choices[row], byte, text, logits.copy() if job.logits else None))
        for row in {each.row for each in drawn}:
            if row.finished is not None and row.finished != "interrupted":  # which none of these rows is
                self._end(self._writing.pop(row), row, row.finished)

    def _end(self, job: Job, row: Row, reason: Literal["length", "stop"]) -> None:
        self._left[job].remove(row)
        if not self._left[job]:
            del self._left[job]
        self._free(1)
        job.tell(Ended(job.choices[row], reason))

    def _give_up(self, job: Job) -> None:
        for row in self._left[job]:
            if self._writing.pop(row, None) is not None:
                self._batch.remove(row)
        self._forget(job)

    def _fail(self, jobs: Sequence[Job], fault: Exception) -> None:
        for job in jobs:
            self._give_up(job)
            job.tell(Failed(fault))

    def _renew_batch(self, more: Sequence[Job], fault: Exception) -> None:
        """Fail all jobs that were in the batch, of which nobody knows what state it is in."""
        jobs = {*self._writing.values(), *more}
        self._writing.clear()
        self._batch = self._new_batch()
        self._fail(list(jobs), fault)

    def _forget(self, job: Job) -> None:
        self._reading = deque(reading for reading in self._reading if reading.job is not job)
        self._free(len(self._left.pop(job)))

    def _free(self, rows: int) -> None:
        with self._changed:
            self._taken_rows -= rows
            self._admit()


def _read(model: ByteLM, data: bytes, scored: bool) -> Iterator[tuple[bytes, Context, Logits | None]]:
    """Each piece of a text, the context after it, and the logits of its bytes if they are wanted."""
    pieces = [data[first : first + PIECE] for first in range(0, len(data), PIECE)]
    if not scored:
        for piece, context in zip(pieces, read_pieces(model, pieces), strict=True):
            yield piece, context, None
        return
    before, last = None, np.full((1, 256), np.nan, dtype=np.float32)
    for piece in pieces:
        with torch.no_grad():
            tensor, state = model.prefill(piece, None if before is None else before.state)
        begin = Context(state, tensor[:, -1], 0, b"") if before is None else before
        before = begin.extended(piece, state, tensor[:, -1].clone())
        logits = tensor[0].float().cpu().numpy()
        yield piece, before, np.concatenate([last, logits[:-1]])
        last = logits[-1:]
