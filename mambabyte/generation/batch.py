"""Rows of text that a model continues together: each has its own prompt, sampler and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.generation.context import EMPTY_PROMPT, Context
from mambabyte.generation.sampler import Draws, Sampler, draw
from mambabyte.generation.speculative.drafter import Guess
from mambabyte.generation.speculative.drafting import Draft, Drafting, clock
from mambabyte.generation.speculative.heads import HeadsDrafter
from mambabyte.generation.stepping import stepper_for
from mambabyte.generation.stopping import Stops
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import State


class Row:
    """One text that a model writes.

    Args:
        length: the most bytes to write; a row of 0 has ended before it begins.
        stop: strings before which it ends.
        keep_context: whether to keep the model's state at the end, which costs one more step.

    Attributes:
        finished: why it has ended: "length", "stop" or "interrupted"; None while it goes on.
        drawn: the number of bytes drawn so far, those of a stop string included.
        context: what the model has read when the row has ended, with `keep_context`: all bytes drawn.
    """

    def __init__(
        self, sampler: Sampler, length: int, stop: Sequence[bytes] = (), keep_context: bool = False
    ) -> None:
        self.sampler, self.length, self.stops = sampler, length, Stops(stop)
        self.keep_context = keep_context
        self.finished: Literal["length", "stop", "interrupted"] | None = None if length else "length"
        self.drawn = 0
        self.context: Context | None = None

    def push(self, byte: int) -> bytes:
        """Take a byte that was drawn for it; return what of its text is certain now."""
        self.drawn += 1
        text = self.stops.push(byte)
        if self.stops.found:
            self.finished = "stop"
        elif self.drawn == self.length:
            self.finished = "length"
            text += self.stops.rest()
        return text

    def interrupt(self) -> bytes:
        """End it here; return what was held back of its text."""
        self.finished = "interrupted"
        return self.stops.rest()


class Drawn(NamedTuple):
    """A byte that was drawn for a row.

    text: what may be shown now, which lags behind while a stop string may have begun.
    logits: (256,), of the model, from which the byte was drawn.
    """

    row: Row
    byte: int
    text: bytes
    logits: NDArray[np.float32]


class _Place:
    """A row in a batch."""

    def __init__(self, row: Row, context: Context) -> None:
        self.row = row
        self.draws = Draws(row.sampler, context.tail, row.length)
        self._begin = context
        self._drawn = bytearray()  # only kept for a context at the end
        self.byte = 0  # the last one
        self.next: int | None = None  # the one after it, if the draws are ahead by one
        self.untold = bytearray()  # what a drafter has not been told yet
        self.untested: Guess | None = None  # at the next byte

    def push(self, byte: int) -> bytes:
        self.byte = byte
        if self.row.keep_context:
            self._drawn.append(byte)
        return self.row.push(byte)

    def context(self, state: State, logits: Tensor) -> Context:
        return self._begin.extended(bytes(self._drawn), state, logits)


class Batch:
    """Rows that are continued together, one step of the model for all. They come and go at any time, and what
    is written does not depend on the other rows.

    Args:
        weights: how the model's linear layers are stored: see `generate`.
        drafting: guesses at the next bytes, of which a step takes as many as are right. The text is that of
            plain steps, for every seed, wherever the model's windows round as its steps do, as MambaByte's do
            on a CPU; elsewhere a tie within rounding may fall the other way.

    Raises:
        UserError: such weights are not to be had for this model here.
        ValueError: the drafter is made of another model's heads.
        RuntimeError: from all calls after a step that failed, whatever its reason, as rows may have drawn
            bytes that the model has not read.
    """

    def __init__(self, model: ByteLM, weights: str = "fp32", drafting: Drafting | None = None) -> None:
        self.model = model
        self._device = model.device  # looking it up takes a tenth of a small model's step
        self._drafting = drafting
        self._heads: HeadsDrafter | None = None  # which the drafter is made of
        if drafting is not None:
            drafting.drafter.select([])  # rows that a batch before this one has left behind
            if isinstance(drafting.drafter, HeadsDrafter):
                self._heads = drafting.drafter
                if self._heads.model is not model:
                    raise ValueError("heads draft for the model that they are of")
        self._failed = False
        self._places: list[_Place] = []
        self._stepper = stepper_for(model, model.initial_state(0), weights, self._heads is not None)
        self._logits = np.empty((0, 256), dtype=np.float32)

    @property
    def rows(self) -> list[Row]:
        """Those that go on."""
        return [place.row for place in self._places]

    @torch.no_grad()
    def add(self, context: Context, rows: Sequence[Row]) -> None:
        """Rows that all go on from one context; those that have ended are left out.

        Raises:
            UserError: it is of another model.
        """
        self._refuse_after_failure()
        self.model.as_batch(EMPTY_PROMPT, context.state)  # nothing has changed yet if it is refused
        rows = [row for row in rows if row.finished is None]
        if self._drafting is not None:
            self._drafting.drafter.append(context.recent, len(rows))
        self._stepper.append(context.state)
        before = len(self._places)
        self._stepper.select([*range(before), *[before] * len(rows)])
        self._places += [_Place(row, context) for row in rows]
        logits = context.logits.float().cpu().numpy()
        self._logits = np.concatenate([self._logits, np.repeat(logits, len(rows), axis=0)])

    def remove(self, row: Row) -> None:
        """Let a row go, with its context so far if it keeps one; one that has ended is no longer here."""
        self._refuse_after_failure()
        self._keep_contexts([i for i, place in enumerate(self._places) if place.row is row])
        self._select([place for place in self._places if place.row is not row])

    @torch.no_grad()
    def step(self) -> list[Drawn]:
        """Draw a byte for each row, and read it; rows that have ended leave. With drafting, some rows may get
        several bytes, in their order."""
        self._refuse_after_failure()
        drafting = self._drafting
        if drafting is not None and drafting.sleeps():
            drafting = None
        self._failed, begin = True, clock()
        drawn = self._draw()
        self._select([p for p in self._places if p.row.finished is None or p.row.keep_context])
        rows, length = len(self._places), 0
        if rows and drafting is not None:
            more, length = self._read_drafted(drafting)
            drawn += more
        elif rows:
            self._read()
        self._keep_contexts([i for i, p in enumerate(self._places) if p.row.finished is not None])
        self._select([place for place in self._places if place.row.finished is None])
        if rows and drafting is not None:
            drafting.spent(rows, len(drawn), length, begin)
        elif rows and self._drafting is not None:
            self._drafting.slept(rows, begin)
        self._failed = False
        return drawn

    def __iter__(self) -> Iterator[Drawn]:
        """Every byte, until all rows have ended."""
        while self._places:
            yield from self.step()

    def _refuse_after_failure(self) -> None:
        if self._failed:
            raise RuntimeError("a step of this batch has failed: begin another one")

    def _draw(self) -> list[Drawn]:
        """The next byte of each row."""
        fresh = [i for i, place in enumerate(self._places) if place.next is None]
        if fresh:
            draws = [self._places[i].draws for i in fresh]
            for i, byte in zip(fresh, draw(draws, self._logits[fresh]), strict=True):
                self._places[i].next = byte
        drawn = []
        for place, logits in zip(self._places, self._logits, strict=True):
            assert place.next is not None
            if self._drafting is not None:
                self._drafting.resolve(place.untested, place.next)
            drawn.append(self._take(place, place.next, logits))
            place.next = place.untested = None
        return drawn

    def _take(self, place: _Place, byte: int, logits: NDArray[np.float32]) -> Drawn:
        if self._drafting is not None:
            place.untold.append(byte)
        return Drawn(place.row, byte, place.push(byte), logits)

    def _read(self) -> None:
        """The last byte of each row."""
        bytes = torch.from_numpy(np.array([place.byte for place in self._places]))
        self._logits = self._stepper(bytes.to(self._device)).float().cpu().numpy()
        if self._heads is not None and self._stepper.hidden is not None:
            self._heads.see(self._stepper.hidden)

    def _drafts(self, drafting: Drafting) -> list[Draft]:
        """What may follow the last byte of each row."""
        told = [bytes(place.untold) for place in self._places]
        for place in self._places:
            place.untold.clear()
        left = [0 if p.row.finished else p.row.length - p.row.drawn for p in self._places]
        return drafting.propose(told, [place.draws for place in self._places], left)

    def _read_drafted(self, drafting: Drafting) -> tuple[list[Drawn], int]:
        """The last byte of each row and the guesses that follow it and are right, and the longest draft."""
        if drafting.rests(len(self._places)):
            self._read()
            return [], 0
        drafts = self._drafts(drafting)
        length = max(len(draft.guesses) for draft in drafts)
        if not length:
            for place, draft in zip(self._places, drafts, strict=True):
                place.untested = draft.untested
            self._read()
            return [], 0
        window = np.zeros((len(drafts), 1 + length), dtype=np.uint8)  # short drafts are followed by anything
        for row, place, draft in zip(window, self._places, drafts, strict=True):
            row[: 1 + len(draft.guesses)] = [place.byte, *(guess.byte for guess in draft.guesses)]
        try:
            read = self._stepper.window(torch.from_numpy(window).to(self._device))
        except UserError:  # a guess, or what follows a short draft, may be beyond a model's last position
            self._read()
            return [], 0
        logits = read.float().cpu().numpy()
        verified = drafting.verify(drafts, [place.draws for place in self._places], logits)
        drawn, kept = [], []
        for place, draft, its, seen in zip(self._places, drafts, verified, logits, strict=True):
            count = 0
            while count < its.accepted and place.row.finished is None:
                drawn.append(self._take(place, draft.guesses[count].byte, seen[count]))
                count += 1
            place.draws, place.next = its.draws, its.byte
            kept.append(1 + count)
        self._stepper.keep(kept)
        last = range(len(kept)), [count - 1 for count in kept]
        self._logits = logits[last]
        if self._heads is not None and self._stepper.hidden is not None:
            self._heads.see(self._stepper.hidden[last])
        return drawn, length

    def _keep_contexts(self, ended: list[int]) -> None:
        for i in ended:
            place = self._places[i]
            if not place.row.keep_context:
                continue
            logits = torch.from_numpy(self._logits[i : i + 1]).to(self._device)
            place.row.context = place.context(self._stepper.state([i]), logits)

    def _select(self, places: list[_Place]) -> None:
        if len(places) == len(self._places):
            return
        index = {id(place): i for i, place in enumerate(self._places)}
        kept = [index[id(place)] for place in places]
        self._places, self._logits = places, self._logits[kept]
        self._stepper.select(kept)
        if self._drafting is not None:
            self._drafting.drafter.select(kept)
