"""What guesses the next bytes of each row of a batch."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mambabyte.generation.sampler import Draws

_KINDS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)  # nats; a wider margin is the next kind
KINDS_OF_DRAWS = len(_KINDS) + 1


class Guess(NamedTuple):
    """A byte that the model is expected to draw.

    kind: how sure the drafter is. How often guesses of each kind come true is counted, and only that decides
        which are worth verifying: the numbers may mean anything.
    """

    byte: int
    kind: int


class Drafter(Protocol):
    """Follows the texts of a batch's rows, and guesses how they go on.

    A drafter that guesses several bytes at once, such as a subword, gives them one by one.
    """

    def append(self, text: bytes, rows: int) -> None:
        """So many rows more, at the end, which all go on from this text, or from one that ends so."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""

    def push(self, texts: Sequence[bytes]) -> None:
        """The rows' texts go on with these bytes, any number for each row."""

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        """The byte after each row's text, then the one after that if it is right, and so on for as long as
        they are asked for; None for a row that has no guess, and none from then on.

        Args:
            draws: those of each row from here on, for the drafter to make use of: with the noise of the
                model's own draw, a guess from the same distribution is always right.
        """


def drawn_guess(draws: Draws, logits: NDArray[np.float32]) -> Guess:
    """The byte that the draws take from these logits (256,), with which they go on.

    How far it leads the second one, in nats, says how far the model's logits must differ for another draw.
    """
    sampler = draws.sampler
    if sampler.temperature and sampler.filters:
        with np.errstate(divide="ignore"):
            scores = np.log(draws.probabilities(logits) / draws.noise())
    elif sampler.temperature:
        scores = draws.constrained(logits) / sampler.temperature - np.log(draws.noise())
    else:
        scores = draws.constrained(logits)
    byte = int(scores.argmax())
    second, first = np.partition(scores, -2)[-2:].tolist()
    draws.push(byte)
    return Guess(byte, bisect(_KINDS, first - second))
