"""How benchmarks/tournament.py searches: shared points, then steps from the best, the corpora in turns."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping

from tournament_runs import Failed, Machine, Plan, best_of, first_trials
from tournament_space import Point, Size


class Search:
    """The trials of one model, on all corpora.

    The first turn is on the first corpus and begins with the points that are the same for all models. Every
    later turn begins at the best point of the turn before, which was on another corpus: so what is found on
    one is tried on the other. Every further trial changes one setting of the best point on its corpus by
    one step: a change that gave a new best point is made once more, otherwise a seeded draw chooses. So the
    trials of an earlier sitting lead to the same points again. (After a dozen trials a sampler such as TPE
    has hardly begun to learn.)

    ended: whether all turns have, without a fault.
    """

    def __init__(self, plan: Plan, machine: Machine, model: str) -> None:
        self._plan, self._machine, self._model = plan, machine, model
        self._found: dict[str, dict[Point, float]] = {corpus: {} for corpus in plan.corpora}
        self._outcomes: dict[str, list[str]] = {corpus: [] for corpus in plan.corpora}
        self._turns = 0  # that have ended
        self._fault = False
        self._changed = threading.Condition()

    @property
    def ended(self) -> bool:
        return self._turns == len(self._plan.turns) and not self._fault

    def best(self, corpus: str) -> Point:
        return best_of([(bits, point) for point, bits in self._found[corpus].items()])

    def turn(self, number: int) -> None:
        """Run the trials of a turn, after those of the turn before; nothing if one before had a fault.

        Raises:
            Stopped, Failed: as `Machine.finish`; Failed: no trial on this corpus has a figure.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._turns == number)
        try:
            if not self._fault:
                self._run(number)
        except BaseException:
            self._fault = True
            raise
        finally:
            with self._changed:
                self._turns += 1
                self._changed.notify_all()

    def _run(self, turn: int) -> None:
        corpus, until = self._plan.turns[turn]
        found, draws = self._found[corpus], random.Random(turn)
        if turn:
            first = [self.best(self._plan.turns[turn - 1][0])]
        else:
            first = [job.point for job in first_trials(self._plan, corpus, self._model)]
        first = [point for point in first if point not in found]
        helped: tuple[str, int] | None = None
        for number in range(len(found), until):
            if first:
                move, point = None, first.pop(0)
            else:
                move, point = self._step(corpus, helped, draws)
            result = self._machine.finish(self._plan.trial(corpus, self._model, number, point))
            best = found.get(self.best(corpus)) if found else None
            helped = move if best is None or result["bits_per_byte"] < best else None
            found[point] = result["bits_per_byte"]
            self._outcomes[corpus].append(result["outcome"])
        if "finished" not in self._outcomes[corpus]:
            last = self._outcomes[corpus][-1]
            why = f"none of its trials has a figure, so it has no best point; the last: {last}"
            raise Failed(f"{corpus}, {self._model}: {why}")

    def _step(
        self, corpus: str, helped: tuple[str, int] | None, draws: random.Random
    ) -> tuple[tuple[str, int], Point]:
        try:
            return next_step(self._plan.size, self._found[corpus], helped, draws)
        except Failed as fault:
            raise Failed(f"{corpus}, {self._model}: {fault}") from fault


def next_step(
    size: Size, found: Mapping[Point, float], helped: tuple[str, int] | None, draws: random.Random
) -> tuple[tuple[str, int], Point]:
    """A move from the best point that has an untried neighbour, and that neighbour.

    Raises:
        Failed: no point has one.
    """
    for start in sorted(found, key=lambda each: found[each]):
        moves = {move: point for move, point in size.moves(start).items() if point not in found}
        if moves:
            move = helped if helped in moves else draws.choice(list(moves))
            return move, moves[move]
    raise Failed("there are more trials than points in the search space")
