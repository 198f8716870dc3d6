"""Rounds of guesses and their verification, for `Batch`."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from time import thread_time as clock
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mambabyte.errors import UserError
from mambabyte.generation.sampler import Draws, draw
from mambabyte.generation.speculative.drafter import Drafter, Guess
from mambabyte.generation.speculative.lengths import AdaptiveLengths, FixedLengths, Lengths, Round
from mambabyte.runtime.units import counted

MOST = 32  # guesses in a round, where nothing else is said
MOST_TOP_BETA = 8
TOP_BETA = 3  # of the paper's bytes, as many are the likeliest
_PLAIN_STEPS = 4  # of each number of rows, which are timed before anything is drafted
_ROUNDS = 64  # with the drafter, after which a plain step is timed again
# All times are CPU time of this thread: what other processes take says nothing of drafts. For a GPU, PyTorch
# waits by spinning.
_SLEEP = 32  # plain steps, where drafts do not pay
_TIMED = 16  # plain steps, the last ones, whose median counts
Acceptance = Literal["exact", "top_beta"]


@dataclass
class Statistics:
    """What drafting has done so far.

    rounds: steps in which guesses were verified.
    drafted, accepted: guesses that were verified, and those of them that were accepted.
    paces: for each number of rows, how long steps took.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    paces: dict[int, Pace] = field(default_factory=lambda: defaultdict(Pace))

    @property
    def acceptance(self) -> float | None:
        """The share of the verified guesses that were accepted."""
        return self.accepted / self.drafted if self.drafted else None

    def __str__(self) -> str:
        if self.acceptance is None:
            return "drafted nothing: no guess was worth verifying"
        speedup = "" if self.speedup is None else f", {self.speedup:.2f} times as fast as without"
        return f"drafted {counted(self.drafted, 'byte')}, accepted {self.acceptance:.0%}{speedup}"

    @property
    def speedup(self) -> float | None:
        """The time that plain steps would have taken for the same bytes, by those that were timed in between,
        over what was taken; None if too few were timed."""
        timed = [pace for pace in self.paces.values() if pace.plain]
        seconds = sum(pace.seconds + pace.slept * pace.plain_seconds for pace in timed)
        plain = sum((pace.bytes + pace.slept) * pace.plain_seconds for pace in timed)
        return plain / seconds if seconds else None


@dataclass
class Pace:
    """seconds, bytes: of the steps with so many rows, and of each row, where they were timed.
    plain, plain_seconds: the number of those without the drafter, and the time of one.
    slept: plain steps that were not timed."""

    seconds: float = 0.0
    bytes: float = 0.0
    plain: int = 0
    plain_seconds: float = 0.0
    slept: int = 0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMED), repr=False)

    def add_plain(self, seconds: float) -> None:
        self.plain += 1
        self._recent.append(seconds)
        self.plain_seconds = median(self._recent)  # some find less in the caches


@dataclass
class _Asleep:
    """seconds: of the latest steps with so many rows while it slept."""

    rows: int
    steps: int = 0
    seconds: float = 0.0


@dataclass
class Draft:
    """The guesses for one row.

    untested: the one after them, which was made and is not verified.
    chance: the odds that all of them are right.
    """

    guesses: list[Guess] = field(default_factory=list)
    untested: Guess | None = None
    chance: float = 1.0


class Verified(NamedTuple):
    """What is known of a row after its draft.

    accepted: the number of its guesses that are its next bytes.
    byte: what the model draws after those.
    draws: the row's, after that byte.
    """

    accepted: int
    byte: int
    draws: Draws


class Drafting:
    """Drafts for a batch's rows, and which of their bytes are accepted.

    Args:
        most: the most guesses in a round. Up to there as many are verified as their acceptance so far, and
            the times measured in this run, promise to be faster; that changes nothing in what is written.
            With top_beta, always as many.
        acceptance: `exact` accepts a guess if it is the byte that the model draws itself, with its own noise:
            what is written is what would be written without a drafter (with greedy decoding as with sampling,
            where this is the coupling by shared noise of speculative sampling, arXiv 2211.17192: a guess that
            does not depend on the noise is accepted with the model's probability of it). `top_beta` accepts
            it if it is among the model's `top_beta` likeliest bytes (arXiv 2401.13660, section 3): faster,
            but then the drafter decides what is written, which no longer follows the model's distribution.
        lengths: decides how many are verified, instead.

    Raises:
        UserError: an argument out of range.
    """

    def __init__(
        self,
        drafter: Drafter,
        most: int | None = None,
        acceptance: Acceptance = "exact",
        top_beta: int = TOP_BETA,
        lengths: Lengths | None = None,
    ) -> None:
        if acceptance not in get_args(Acceptance):
            raise UserError(f"acceptance must be {' or '.join(get_args(Acceptance))}, not {acceptance}")
        if not 1 <= top_beta <= 256:
            raise UserError(f"top_beta must be from 1 to 256, not {top_beta}")
        if most is not None and most < 1:
            raise UserError(f"a draft has one byte or more, not {most}")
        self.drafter = drafter
        self.statistics = Statistics()
        self._top_beta = top_beta if acceptance == "top_beta" else None
        if lengths is None and self._top_beta:
            lengths = FixedLengths(most or MOST_TOP_BETA)
        self._lengths = lengths or AdaptiveLengths(most or MOST)
        self._rounds = 0  # since the last plain step
        self._sleep = self._slept = 0  # steps that it will and did sleep
        self._asleep = _Asleep(0)
        self._rested = False  # this step is plain, and timed
        self._asked = 0
        self._seconds = 0.0  # of drafting, in this step
        self._late = 0.0  # seconds of the last `spent`

    def sleeps(self) -> bool:
        """Whether the next step is to be plain and of no concern here, because drafts do not pay."""
        if self._sleep:
            self._sleep -= 1
            return True
        return False

    def slept(self, rows: int, begin: float) -> None:
        """A step while it slept is over; `begin` is when that began, by `clock`."""
        if rows != self._asleep.rows:
            self._asleep = _Asleep(rows)
        self._asleep.steps += 1
        self._asleep.seconds += clock() - begin

    def rests(self, rows: int) -> bool:
        """Whether the next step, of so many rows, is to be plain, so that it is timed. As when it sleeps, the
        drafter is told later what came."""
        pace = self.statistics.paces[rows]
        if self._slept:
            pace.slept += self._slept
            self._lengths.rested(self._slept)
            self._slept = 0
            if self._asleep.rows == rows:
                # Better than single steps between others, which find less in the caches.
                pace.plain_seconds = self._asleep.seconds / self._asleep.steps
                self._rounds = 0
            self._asleep = _Asleep(0)
        timed = pace.plain
        if self._top_beta:  # what is written depends on what is drafted, which must not depend on other rows
            timed = sum(each.plain for each in self.statistics.paces.values())
        self._rested = timed < _PLAIN_STEPS or self._rounds >= _ROUNDS
        if not self._rested and not self._lengths.starts():
            self._rested = True
            self._sleep = self._slept = _SLEEP
        return self._rested

    def propose(self, texts: Sequence[bytes], draws: Sequence[Draws], left: Sequence[int]) -> list[Draft]:
        """A draft for each row, which may be empty.

        Args:
            texts: what came to each row's text since the last call.
            left: the most bytes that each row can still take.
        """
        begin = clock()
        self.drafter.push(texts)
        drafts = [Draft() for _ in draws]
        self._asked = 0
        if any(left):
            self._guess(drafts, draws, left)
        self._seconds = clock() - begin
        return drafts

    def _guess(self, drafts: list[Draft], draws: Sequence[Draws], left: Sequence[int]) -> None:
        lengths, chance, gain = self._lengths, 1.0, 0.0
        guesses = self.drafter.guesses([row.ahead() for row in draws])
        while self._asked < max(left) and lengths.asks(self._asked, chance):
            some = next(guesses, None)
            if some is None:
                break
            self._asked += 1
            open = [
                (draft, guess)
                for draft, guess, most in zip(drafts, some, left, strict=True)
                if guess is not None and len(draft.guesses) < most
            ]
            for draft, guess in open:
                draft.chance *= lengths.rate(guess.kind)
            chance = sum(draft.chance for draft, _ in open) / len(drafts)
            if not open or not lengths.adds(chance):
                for draft, guess in open:
                    draft.untested = guess
                break
            for draft, guess in open:
                draft.guesses.append(guess)
            gain += chance
        if gain and not lengths.suffices(max(len(draft.guesses) for draft in drafts), gain):
            for draft in drafts:
                if draft.guesses:
                    draft.untested = draft.guesses[0]
                    draft.guesses = []

    def verify(
        self, drafts: Sequence[Draft], draws: Sequence[Draws], logits: NDArray[np.float32]
    ) -> list[Verified]:
        """Which guesses are accepted, and the byte that the model draws after those.

        Args:
            draws: of each row, from its first guess on.
            logits: (B, L + 1, 256), of each guess of at most L and of the byte after the last.

        Raises:
            UserError: the logits give no probabilities.
        """
        ahead: list[Draws] = []
        for row, draft in zip(draws, drafts, strict=True):
            ahead.append(row.ahead())
            for guess in draft.guesses:
                ahead.append(ahead[-1].ahead())
                ahead[-1].push(guess.byte)
        counts = [len(draft.guesses) for draft in drafts]
        seen = np.concatenate([its[: count + 1] for its, count in zip(logits, counts, strict=True)])
        likely = (
            [row.constrained(its) for row, its in zip(ahead, seen, strict=True)] if self._top_beta else []
        )
        drawn = draw(ahead, seen)
        verified, first = [], 0
        for draft, count in zip(drafts, counts, strict=True):
            accepted = 0
            for guess in draft.guesses:
                place = first + accepted
                right = guess.byte == drawn[place]
                self._lengths.tell(guess.kind, right)
                if not right and not (self._top_beta and _ranks(guess.byte, likely[place], self._top_beta)):
                    break
                accepted += 1
            place = first + accepted
            if accepted == count:
                self.resolve(draft.untested, drawn[place])
            verified.append(Verified(accepted, drawn[place], ahead[place]))
            self.statistics.drafted += count
            self.statistics.accepted += accepted
            first += count + 1
        return verified

    def resolve(self, untested: Guess | None, byte: int) -> None:
        """The byte that came where a guess was made but not verified."""
        if untested is not None:
            self._lengths.tell(untested.kind, untested.byte == byte)

    def spent(self, rows: int, drawn: int, length: int, begin: float) -> None:
        """A step is over.

        Args:
            rows: that were read.
            drawn: the bytes that all of them gave.
            length: of the longest draft that was verified; 0: none was.
            begin: when the step began, by `clock`.
        """
        now = clock()
        pace, seconds = self.statistics.paces[rows], now - begin
        pace.seconds += seconds + self._late
        pace.bytes += drawn / rows
        if self._rested:
            self._rounds = 0
            pace.add_plain(seconds)
            self._lengths.rested(1)
        else:
            self._rounds += 1
            self.statistics.rounds += length > 0
            if pace.plain:
                drafting, rest = self._seconds, seconds - self._seconds + self._late
                times = drafting / pace.plain_seconds, rest / pace.plain_seconds
                self._lengths.spent(Round(drawn / rows, self._asked, length, *times))
        self._late = clock() - now


def _ranks(byte: int, logits: NDArray[np.floating], among: int) -> bool:
    """Whether a byte is among so many likeliest ones, and not ruled out."""
    return bool(np.isfinite(logits[byte]) and (logits > logits[byte]).sum() < among)
