"""Drafters that know how the texts go on, and say so or not."""

from collections.abc import Callable, Iterator, Sequence

from mambabyte.generation import Batch, Row
from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative import Guess


class Knowing:
    """The next bytes of texts that it is told beforehand, in the order in which the rows come.

    Args:
        guess: a guess, from a text and a place in it; None for no guess.
    """

    def __init__(self, texts: Sequence[bytes], guess: Callable[[bytes, int], int | None]) -> None:
        self._coming, self._guess = list(texts), guess
        self._rows: list[tuple[bytes, int]] = []

    def append(self, text: bytes, rows: int) -> None:
        self._rows += [(self._coming.pop(0), 0) for _ in range(rows)]

    def select(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def push(self, texts: Sequence[bytes]) -> None:
        for row, ((text, place), more) in enumerate(zip(self._rows, texts, strict=True)):
            assert text[place : place + len(more)] == more
            self._rows[row] = text, place + len(more)

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        for ahead in range(1000):
            bytes = [self._guess(text, place + ahead) for text, place in self._rows]
            yield [None if byte is None else Guess(byte, 0) for byte in bytes]


def right(text: bytes, place: int) -> int | None:
    """Every byte, and more than there are."""
    return text[place] if place < len(text) else 0


def wrong(text: bytes, place: int) -> int | None:
    """None is right."""
    return (right(text, place) + 1) % 256


def sometimes(text: bytes, place: int) -> int | None:
    """Each text's own mixture of right, wrong and no guesses."""
    return (right, right, right, wrong, lambda *_: None)[(place * place + text[0]) % 5](text, place)


def collect(batch: Batch) -> dict[Row, bytes]:
    texts: dict[Row, bytes] = {}
    for drawn in batch:
        texts[drawn.row] = texts.get(drawn.row, b"") + drawn.text
    return texts
