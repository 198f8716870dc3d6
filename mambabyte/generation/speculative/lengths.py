"""How far to draft: as far as verifying a guess costs less than a step, times the odds that it is right."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

_LOAN = 6.0  # plain steps whose time drafting may lose at first
_SURPLUS = 16.0  # plain steps: what was won longer ago is not staked again
_STAKE = 0.01  # of the time, which drafting may lose for ever
_AFTER = 0.1  # plain steps: what a window is thought to cost those after it, which find less in the caches
_PAST = 0.98  # weight of the past, for each value that comes, in all means
_GUESS = 0.1  # plain steps: what a guess may well take
_OUTLIER = 3  # times the mean: what takes longer shared the processor with something else
_LEAST_SLOPE = 0.01  # plain steps that one guess more is thought to take at least


class Round(NamedTuple):
    """What a step with the drafter took and gave. All times are in plain steps of as many rows.

    bytes: drawn, of each row on average.
    asked: guesses that each row was asked for.
    length: the most that were verified of a row.
    drafting, rest: time of the drafter, and of all else.
    """

    bytes: float
    asked: int
    length: int
    drafting: float
    rest: float


class Lengths(Protocol):
    """Decides what is guessed and verified, from what it is told of the past.

    A length is the number of guesses for a row in one round. A chance is the mean over the rows of the odds
    that a guess and all before it are right.
    """

    most: int

    def starts(self) -> bool:
        """Whether to ask the drafter at all this time."""

    def asks(self, length: int, chance: float) -> bool:
        """Whether to ask for one guess more, after `length` of them, of which the last has this chance."""

    def adds(self, chance: float) -> bool:
        """Whether a guess with this chance is worth verifying if those before it are verified."""

    def suffices(self, length: int, gain: float) -> bool:
        """Whether `length` guesses, with the sum of their chances, are worth verifying rather than none."""

    def rate(self, kind: int) -> float:
        """How often a guess of this kind comes true."""

    def tell(self, kind: int, right: bool) -> None:
        """A guess of this kind came true or did not."""

    def spent(self, round: Round) -> None:
        """A step with the drafter is over."""

    def rested(self, steps: int) -> None:
        """So many plain steps are over."""


class FixedLengths:
    """As many guesses as there are, up to `most`, whatever they cost."""

    def __init__(self, most: int) -> None:
        self.most = most

    def starts(self) -> bool:
        return True

    def asks(self, length: int, chance: float) -> bool:
        return length < self.most

    def adds(self, chance: float) -> bool:
        return True

    def suffices(self, length: int, gain: float) -> bool:
        return True

    def rate(self, kind: int) -> float:
        return 1.0

    def tell(self, kind: int, right: bool) -> None:
        """Nothing depends on it."""

    def spent(self, round: Round) -> None:
        """Nothing depends on it."""

    def rested(self, steps: int) -> None:
        """Nothing depends on it."""


class AdaptiveLengths:
    """Weighs the time of guesses and windows, as measured in this run, against that of plain steps.

    Drafting may lose a few steps' time at first and one per cent of the time later; what it wins, up to a
    bound, it may lose again. So a long text takes at most a few per cent longer than without a drafter.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._account = _LOAN
        self._pace = _Mean(1.0)  # time of a byte
        self._guessing = _Mean(0.0)  # time of one guess
        self._verifying = _Line()
        self._right = _Mean(0.5)  # of all guesses
        self._rates: dict[int, _Mean] = defaultdict(lambda: _Mean(0.5))  # of each kind

    def starts(self) -> bool:
        return self._account > 0

    def asks(self, length: int, chance: float) -> bool:
        if length == 0:
            return True
        gain = chance * self._right.value * self._pace.value
        return length < self.most and gain > self._verifying.slope + self._guessing.value

    def adds(self, chance: float) -> bool:
        return chance * self._pace.value > self._verifying.slope

    def suffices(self, length: int, gain: float) -> bool:
        return gain * self._pace.value > self._verifying.at(length) - 1 + _AFTER

    def rate(self, kind: int) -> float:
        return self._rates[kind].value

    def tell(self, kind: int, right: bool) -> None:
        self._rates[kind].add(right)
        self._right.add(right)

    def spent(self, round: Round) -> None:
        expected = self._verifying.at(round.length) if round.length else 1.0
        rest = min(round.rest, _OUTLIER * expected)
        each = min(round.drafting / max(round.asked, 1), _OUTLIER * max(self._guessing.value, _GUESS))
        time = rest + each * max(round.asked, 1)
        if round.asked:
            self._guessing.add(each)
        if round.length:
            self._verifying.add(round.length, rest)
        elif round.asked:
            self._verifying.forget()
        self._pace.add(min(time / round.bytes, 1.0))
        self._account = min(self._account + round.bytes * (1 + _STAKE) - time, _SURPLUS)

    def rested(self, steps: int) -> None:
        self._account = min(self._account + steps * _STAKE, _SURPLUS)


class _Mean:
    """A mean over about the last 50 values, which begins with one from before if that is given."""

    def __init__(self, before: float | None = None) -> None:
        self.value = before or 0.0
        self.seen = 0
        self._weights = 0.0 if before is None else 1.0

    def add(self, value: float) -> None:
        self.seen += 1
        self._weights = 1 + _PAST * self._weights
        self.value += (value - self.value) / self._weights


class _Line:
    """The time of a window with its verification as a line over the number of guesses: least squares over
    about the last 50, and over what is thought before anything was measured."""

    def __init__(self) -> None:
        # A window of two bytes is thought to take 1.25 steps, and one of nine 3.
        self._before = _terms(1, 1.25) + _terms(8, 3.0)
        self._sums = np.zeros(5)
        self._fit()

    def add(self, length: int, time: float) -> None:
        self._sums = _PAST * self._sums + _terms(length, time)
        self._fit()

    def forget(self) -> None:
        """Trust what was measured a little less, so that what seemed too slow is tried again one day."""
        self._sums = _PAST * self._sums
        self._fit()

    def at(self, length: int) -> float:
        return self._start + self.slope * length

    def _fit(self) -> None:
        count, x, y, xx, xy = (self._before + self._sums).tolist()
        self.slope = max((count * xy - x * y) / (count * xx - x * x), _LEAST_SLOPE)
        self._start = (y - self.slope * x) / count


def _terms(x: float, y: float) -> NDArray[np.float64]:
    return np.array([1, x, y, x * x, x * y])
