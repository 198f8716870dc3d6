"""A smaller byte model as the drafter."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.generation.context import read
from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative.drafter import Guess, drawn_guess
from mambabyte.generation.stepping import stepper_for
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import State

_log = logging.getLogger("mambabyte")
_CHUNK = 256  # bytes of each row that are read at a time


class ModelDrafter:
    """Guesses what a model, which is put into eval mode, draws with the same noise.

    What it reads ahead of the text is taken back where the text goes on differently: it returns to the states
    from before its guesses, and reads what came instead. While nobody asks for guesses, it reads nothing.

    Args:
        weights: how its linear layers are stored: see `generate`.

    Raises:
        UserError: such weights are not to be had for this model here.
    """

    def __init__(self, model: ByteLM, weights: str = "fp32") -> None:
        self._model = model.eval()
        self._stepper = stepper_for(model, model.initial_state(0), weights)
        self._before: list[State] = []  # the rows' states before the guesses, if some were read
        self._guessed: list[bytearray] = []  # what the stepper has read since then
        self._texts: list[bytearray] = []  # what came since then
        self._read_text: tuple[bytes | None, State] = None, []  # the last that rows went on from
        self._stopped = False

    @torch.no_grad()
    def append(self, text: bytes, rows: int) -> None:
        if self._stopped:
            return
        try:
            if text != self._read_text[0]:
                self._read_text = text, read(self._model, text).state
        except UserError as error:
            self._stop(error)
            return
        self._return()
        for _ in range(rows):
            self._stepper.append(self._read_text[1])
            self._texts.append(bytearray())
            self._guessed.append(bytearray())

    def select(self, rows: Sequence[int]) -> None:
        if self._stopped:
            return
        self._return()
        self._stepper.select(rows)
        self._texts = [self._texts[row][:] for row in rows]
        self._guessed = [bytearray() for _ in rows]

    def push(self, texts: Sequence[bytes]) -> None:
        if self._stopped:
            return
        for text, more in zip(self._texts, texts, strict=True):
            text += more

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        if self._stopped:
            return
        try:
            logits = self._catch_up()
            while True:
                guesses = [drawn_guess(row, its) for row, its in zip(draws, logits, strict=True)]
                yield list(guesses)
                for guessed, guess in zip(self._guessed, guesses, strict=True):
                    guessed.append(guess.byte)
                logits = _array(self._stepper(self._tensor([guess.byte for guess in guesses])))
        except UserError as error:
            self._stop(error)

    def _catch_up(self) -> NDArray[np.float32]:
        """Read what came, and keep the states; the logits (B, 256) of what comes next."""
        both = list(zip(self._texts, self._guessed, strict=True))
        if not all(text.startswith(guessed) and len(text) > len(guessed) for text, guessed in both):
            self._return()
        logits = np.empty((len(both), 256), dtype=np.float32)
        unread = [text[len(guessed) :] for text, guessed in both]
        for first in range(0, max(map(len, unread)), _CHUNK):
            parts = [text[first : first + _CHUNK] for text in unread]
            self._read(parts, logits)
        # Caches of different lengths are no one state.
        rows = range(len(self._texts))
        groups = [rows] if self._model.recurrent else [[row] for row in rows]
        self._before = [self._stepper.state(group) for group in groups]
        for buffer in (*self._texts, *self._guessed):
            buffer.clear()
        return logits

    def _read(self, parts: Sequence[bytearray], logits: NDArray[np.float32]) -> None:
        """Read the rows' bytes, and put the logits after the last of each there."""
        counts = [len(part) for part in parts]
        longest = max(counts)
        window = self._tensor([[*part, *bytes(longest - len(part))] for part in parts])
        seen = _array(self._stepper(window[:, 0])[:, None] if longest == 1 else self._stepper.window(window))
        if min(counts) < longest:
            self._stepper.keep(counts)
        for row, count in enumerate(counts):
            if count:
                logits[row] = seen[row, count - 1]

    def _return(self) -> None:
        """To the states before the guesses."""
        if any(self._guessed):
            self._stepper.select([])
            for state in self._before:
                self._stepper.append(state)
            for guessed in self._guessed:
                guessed.clear()

    def _stop(self, error: UserError) -> None:
        _log.warning("going on without the drafter: %s", error)
        self._stopped = True

    def _tensor(self, bytes: Sequence[object]) -> Tensor:
        return torch.tensor(bytes, dtype=torch.uint8, device=self._model.device)


def _array(logits: Tensor) -> NDArray[np.float32]:
    return logits.float().cpu().numpy()
