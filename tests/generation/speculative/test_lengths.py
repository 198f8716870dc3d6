"""Drafts are as long as pays, by a clock that the tests turn."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from mambabyte.generation import Sampler
from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative import Drafting, Guess, drafting
from mambabyte.generation.speculative.drafting import Draft

MOST = 32


class Machine:
    """A model that draws byte 0 each time, and a drafter that is right at random. Times are in plain steps.

    Args:
        window: the time of a window with so many guesses.
        guess: the time of a guess.
        rates: how often the guesses of a kind are right; each round has guesses of one kind.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, window: Callable[[int], float], guess: float, *rates: float
    ) -> None:
        self.now, self.window, self.guess, self.rates = 0.0, window, guess, rates
        self.random, self.asked = np.random.default_rng(0), 0
        self.drafting = Drafting(self, most=MOST)
        self.logits = np.zeros((1, MOST + 1, 256), dtype=np.float32)
        self.logits[..., 0] = 1
        monkeypatch.setattr(drafting, "clock", lambda: self.now)

    def append(self, text: bytes, rows: int) -> None: ...

    def select(self, rows: Sequence[int]) -> None: ...

    def push(self, texts: Sequence[bytes]) -> None: ...

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        kind = int(self.random.integers(len(self.rates)))
        while True:
            self.now += self.guess
            yield [Guess(int(self.random.random() >= self.rates[kind]), kind)]

    def speed(self, count: int) -> float:
        """Write as many bytes; how many times as fast as plain steps that was."""
        begin, written = self.now, 0
        while written < count:
            start, row, bytes, length = self.now, Draws(Sampler(0)), 1, 0
            draft = Draft()
            if self.drafting.sleeps():
                self.now += 1
                written += 1
                continue
            if not self.drafting.rests(1):
                self.asked += 1
                (draft,) = self.drafting.propose([b""], [row], [1000])
                length = len(draft.guesses)
            if length:
                self.now += self.window(length)
                (verified,) = self.drafting.verify([draft], [row], self.logits)
                bytes += verified.accepted
            else:
                self.now += 1
                self.drafting.resolve(draft.untested, 0)
            self.drafting.spent(1, bytes, length, start)
            written += bytes
        return written / (self.now - begin)


def reads_at_once(length: int) -> float:
    """As where reading the weights takes most of the time."""
    return 1.1 + 0.12 * length


def reads_in_turn(length: int) -> float:
    """As where computing does: a window takes as long as its bytes do one by one."""
    return 1.0 + length


@pytest.mark.parametrize(
    ("window", "guess", "rate", "faster"),
    [
        (reads_at_once, 0.1, 0.85, 1.6),
        (reads_at_once, 0.0, 0.99, 5.0),
        (reads_at_once, 0.0, 0.5, 1.1),
        (reads_at_once, 0.1, 0.0, 0.95),
        (reads_at_once, 0.5, 0.5, 0.95),
        (reads_in_turn, 0.0, 1.0, 0.95),
        (reads_in_turn, 0.1, 0.6, 0.95),
        (lambda length: 20.0, 0.1, 0.9, 0.95),
    ],
    ids=[*("good", "excellent", "half", "useless", "slow"), *("no-gain", "loss", "slow-windows")],
)
def test_drafts_pay_or_stop(monkeypatch, window, guess: float, rate: float, faster: float) -> None:
    assert Machine(monkeypatch, window, guess, rate).speed(1200) >= faster


def test_only_kinds_that_come_true_are_verified(monkeypatch) -> None:
    machine = Machine(monkeypatch, reads_at_once, 0.02, 0.05, 0.95)
    assert machine.speed(2000) > 1.5
    statistics = machine.drafting.statistics
    assert 0.4 < statistics.rounds / machine.asked < 0.55


def test_a_text_may_change(monkeypatch) -> None:
    machine = Machine(monkeypatch, reads_at_once, 0.1)
    for rate, faster in ((0.1, 0.95), (0.9, 1.6), (0.1, 0.95)):
        machine.rates = (rate,)
        assert machine.speed(1000) >= faster


def test_a_slow_moment_is_forgotten(monkeypatch) -> None:
    machine = Machine(monkeypatch, lambda length: 50.0, 0.0, 0.9)
    machine.speed(20)
    machine.window = reads_at_once
    machine.speed(2000)
    assert machine.speed(500) >= 1.6


def test_what_is_said_of_the_speed_is_measured(monkeypatch) -> None:
    machine = Machine(monkeypatch, reads_at_once, 0.1, 0.85)
    speed = machine.speed(2000)
    assert machine.drafting.statistics.speedup == pytest.approx(speed, rel=1e-6)
    assert f"{speed:.2f} times as fast as without" in str(machine.drafting.statistics)
