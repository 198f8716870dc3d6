"""What guesses the next bytes of each row of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from mambabyte.generation.sampler import Draws


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
