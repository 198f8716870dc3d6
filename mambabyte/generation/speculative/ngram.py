"""A drafter without weights: what followed the last time that the text's last bytes were there."""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Iterator, Sequence
from copy import deepcopy
from zlib import crc32

import numpy as np

from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative.drafter import Guess

HISTORY = 1 << 17  # bytes of a row's text that are looked back, at least; twice as many are held
ORDERS = (16, 6, 3)  # bytes that must agree: the longer are looked up first
_SLOTS = 1 << 16  # of each order's table
_KINDS = (
    8,
    10,
    12,
    16,
    20,
    24,
    32,
    48,
    64,
    128,
    256,
)  # lengths of a match from which a guess is of the next kind


class NgramDrafter:
    """Looks the last bytes of each row's text up in the text, the prompt included. A byte costs a hash for
    each of a few lengths, whatever the text's length; a row takes up to a megabyte."""

    def __init__(self) -> None:
        self._texts: list[_Text] = []
        self._read = b"", _Text()  # the last text that rows went on from: often, others do too

    def append(self, text: bytes, rows: int) -> None:
        text = text[-HISTORY:]
        if text != self._read[0]:
            self._read = text, _Text()
            for byte in text:
                self._read[1].push(byte)
        self._texts += [deepcopy(self._read[1]) for _ in range(rows)]

    def select(self, rows: Sequence[int]) -> None:
        texts = [self._texts[row] for row in rows]
        again = [row in rows[:place] for place, row in enumerate(rows)]
        self._texts = [deepcopy(text) if copy else text for text, copy in zip(texts, again, strict=True)]

    def push(self, texts: Sequence[bytes]) -> None:
        for text, more in zip(self._texts, texts, strict=True):
            for byte in more:
                text.push(byte)

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        ahead = [text.guesses() for text in self._texts]
        while any(guesses := [next(row, None) for row in ahead]):
            yield guesses


class _Text:
    """The end of a row's text, with a table from the hash of n bytes to where they ended last."""

    def __init__(self) -> None:
        self._text = bytearray(ORDERS[0])  # before the text: so that any n bytes are there
        self._tables = [(order, array("i", bytes(4 * _SLOTS))) for order in ORDERS]  # 0: nowhere
        self._next = 0  # the place that followed the match's bytes; 0: there is no match
        self._length = 0  # of the match, as far as it was looked at

    def push(self, byte: int) -> None:
        text, match, length = self._text, self._next, self._length
        if match and text[match] == byte:
            match += 1
            length += 1
        else:
            match = length = 0
        text.append(byte)
        end = len(text)
        for order, table in self._tables:
            last = text[end - order :]
            slot = crc32(last) % _SLOTS
            if length < order:
                before = table[slot]
                if before and text[before - order : before] == last:
                    match, length = before, order
            table[slot] = end
        self._next, self._length = match, length
        if end >= 2 * HISTORY:
            self._forget()

    def guesses(self) -> Iterator[Guess]:
        text, place, length = self._text, self._next, self._length
        period = len(text) - place
        guessed = bytearray()
        while place:
            # Beyond the end of the text, the guesses themselves repeat.
            byte = text[place] if place < len(text) else guessed[-period]
            guessed.append(byte)
            yield Guess(byte, bisect(_KINDS, length))
            place += 1
            length += 1

    def _forget(self) -> None:
        """The first half."""
        del self._text[:HISTORY]
        self._next = max(self._next - HISTORY, 0)
        self._length = self._length if self._next else 0
        for _, table in self._tables:
            places = np.frombuffer(table, dtype=np.intc)
            places -= HISTORY
            places[places < ORDERS[0]] = 0  # some of their bytes are gone
