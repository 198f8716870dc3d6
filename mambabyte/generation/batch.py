"""Rows of text that a model continues together: each has its own prompt, sampler and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambabyte.generation.context import Context
from mambabyte.generation.sampler import Draws, Sampler, draw
from mambabyte.generation.stepping import stepper_for
from mambabyte.generation.stopping import Stops
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import State


class Row:
    """One text that a model writes.

    Args:
        length: the most bytes to write.
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
        self.finished: Literal["length", "stop", "interrupted"] | None = None
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

    Raises:
        UserError: such weights are not to be had for this model here.
    """

    def __init__(self, model: ByteLM, weights: str = "fp32") -> None:
        self.model = model
        self._places: list[_Place] = []
        self._stepper = stepper_for(model, model.initial_state(0), weights)
        self._logits = np.empty((0, 256), dtype=np.float32)

    @property
    def rows(self) -> list[Row]:
        """Those that go on."""
        return [place.row for place in self._places]

    @torch.no_grad()
    def add(self, context: Context, rows: Sequence[Row]) -> None:
        """Rows that all go on from one context."""
        for row in rows:
            self._stepper.append(context.state)
            self._places.append(_Place(row, context))
        logits = context.logits.float().cpu().numpy()
        self._logits = np.concatenate([self._logits, np.repeat(logits, len(rows), axis=0)])

    def remove(self, row: Row) -> None:
        """Let a row go, with its context so far if it keeps one; one that has ended is no longer here."""
        self._keep_contexts([i for i, p in enumerate(self._places) if p.row is row and row.keep_context])
        self._select([place for place in self._places if place.row is not row])

    @torch.no_grad()
    def step(self) -> list[Drawn]:
        """Draw a byte for each row, and read it; rows that have ended leave."""
        logits, drawn = self._logits, []
        for place, byte, seen in zip(
            self._places, draw([place.draws for place in self._places], logits), logits, strict=True
        ):
            drawn.append(Drawn(place.row, byte, place.push(byte), seen))
        self._select([p for p in self._places if p.row.finished is None or p.row.keep_context])
        if self._places:
            bytes = torch.tensor([p.byte for p in self._places], dtype=torch.uint8, device=self.model.device)
            self._logits = self._stepper(bytes).float().cpu().numpy()
        self._keep_contexts([i for i, p in enumerate(self._places) if p.row.finished is not None])
        self._select([place for place in self._places if place.row.finished is None])
        return drawn

    def __iter__(self) -> Iterator[Drawn]:
        """Every byte, until all rows have ended."""
        while self._places:
            yield from self.step()

    def _keep_contexts(self, ended: list[int]) -> None:
        for i in ended:
            place = self._places[i]
            logits = torch.from_numpy(self._logits[i : i + 1]).to(self.model.device)
            place.row.context = place.context(self._stepper.state([i]), logits)

    def _select(self, places: list[_Place]) -> None:
        if len(places) == len(self._places):
            return
        index = {id(place): i for i, place in enumerate(self._places)}
        kept = [index[id(place)] for place in places]
        self._places, self._logits = places, self._logits[kept]
        self._stepper.select(kept)
