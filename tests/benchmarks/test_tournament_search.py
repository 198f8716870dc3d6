"""How benchmarks/tournament.py searches: its points, its steps, and where they lead."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest


def test_the_points_are_the_same_for_all_and_within_the_ranges(load) -> None:
    size = load("tournament_space").SIZES["cpu"]
    points = size.drawn(9)
    assert points == size.drawn(9) and points[0] == size.centre and len(set(points)) == 9
    for point in points:
        assert point.width in size.widths and point.depth in size.depths
        assert point.context_length <= point.batch_bytes in size.batch_bytes, "a step has one window at least"
        assert size.learning_rates[0] <= point.learning_rate <= size.learning_rates[1]
        assert point.learning_rate == float(f"{point.learning_rate:.3g}")
    assert Counter(point.width for point in points[1:]) == dict.fromkeys(size.widths, 2)
    assert set(Counter(point.depth for point in points[1:]).values()) == {2, 3}
    low, high = size.learning_rates
    parts = [8 * math.log(point.learning_rate / low) / math.log(high / low) for point in points[1:]]
    assert sorted(map(int, parts)) == list(range(8)), "one rate in each part of the range"
    assert size.drawn(1) == [size.centre] and len(size.drawn(2)) == 2
    assert {point.width for point in size.drawn(4)[1:]} >= {size.widths[0], size.widths[-1]}, "both ends"


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_step_of_the_search_changes_one_setting_within_the_ranges(load, place: int) -> None:
    space = load("tournament_space")
    size = space.SIZES["cpu"]
    rate = (size.learning_rates[0], size.centre.learning_rate, size.learning_rates[1])[place]
    shape = (size.widths[place], size.depths[place], rate, size.batch_bytes[place])
    point = space.Point(*shape, size.context_lengths[0])
    moves = size.moves(point)
    listed = {"width": size.widths, "depth": size.depths, "batch_bytes": size.batch_bytes}
    listed["context_length"] = size.context_lengths
    for (name, step), other in moves.items():
        changed = [key for key, value in vars(other).items() if value != getattr(point, key)]
        assert changed == [name] and (getattr(other, name) > getattr(point, name)) == (step > 0)
        if name == "learning_rate":
            factor = other.learning_rate / rate
            assert factor == pytest.approx(space.RATE_STEP**step, rel=0.01)
        else:
            there, here = (listed[name].index(getattr(each, name)) for each in (other, point))
            assert there - here == step, "to the next value"
    near_an_end = replace(point, learning_rate=size.learning_rates[1] / 1.1)
    assert size.moves(near_an_end)["learning_rate", 1].learning_rate == size.learning_rates[1]
    ends = {0: {1}, 1: {-1, 1}, -1: {-1}}[place]
    for name in ("width", "depth", "learning_rate", "batch_bytes"):
        assert {step for other, step in moves if other == name} == ends
    assert {step for name, step in moves if name == "context_length"} == {1}
    wide = replace(point, batch_bytes=256, context_length=256)
    both = size.moves(wide)["context_length", 1]
    assert (both.batch_bytes, both.context_length) == (512, 512), "a step has one window at least"


class Measured:
    """Stands for a machine: its result at a point is what the function says."""

    def __init__(self, bits) -> None:
        self.jobs, self._bits = [], bits

    def finish(self, job) -> dict:
        self.jobs.append(job)
        bits = self._bits(job.point)
        return {"bits_per_byte": bits, "outcome": "finished" if bits < 8 else "diverged"}


def test_the_search_goes_on_from_the_best_point(load, planned, tmp_path: Path) -> None:
    tournament, runs = load("tournament"), load("tournament_runs")
    plan = planned("cpu", tmp_path, trials=24)
    wanted = replace(plan.size.centre, width=64, depth=2, context_length=128)

    def bits(point) -> float:
        away = math.log2(point.width / wanted.width) ** 2 + abs(point.depth - wanted.depth)
        away += abs(math.log(point.learning_rate / wanted.learning_rate))
        return 2 + away / 10 + math.log2(point.context_length / 128) / 10

    found = [Measured(bits), Measured(bits)]
    best = [tournament.search(plan, machine, "books", "lstm") for machine in found]
    points = [[job.point for job in machine.jobs] for machine in found]
    assert points[0] == points[1] and best[0] == best[1], "the same again"
    assert len(points[0]) == len(set(points[0])) == 24 and [job.number for job in found[0].jobs] == [
        *range(24)
    ]
    assert points[0][:8] == [job.point for job in runs.first_trials(plan, "books", "mambabyte")]
    repeated = 0
    around_of = plan.size.moves
    for number in range(8, 24):
        before = min(points[0][:number], key=bits)
        around = around_of(before).values()
        assert points[0][number] in around or set(around) <= set(points[0][:number]), "one step from the best"
        last = [move for move, point in around_of(before).items() if point == points[0][number]]
        if last and bits(points[0][number]) < bits(before) and number < 23:
            again = around_of(points[0][number]).get(last[0])
            if again is not None and again not in points[0][:number]:
                assert points[0][number + 1] == again, "a change that helped is made once more"
                repeated += 1
    assert repeated > 0
    assert (best[0].width, best[0].depth, best[0].context_length) == (64, 2, 128)
    with pytest.raises(runs.Failed, match="books, lstm: none of its trials has a figure"):
        tournament.search(plan, Measured(lambda _: 8.0), "books", "lstm")


def test_a_step_that_helped_is_made_again_and_one_untried_is_found(load, tiny: str) -> None:
    tournament, space = load("tournament"), load("tournament_space")
    size, draws = space.SIZES["cpu"], random.Random(0)
    move, point = tournament.next_step(size, {size.centre: 2.0}, ("width", 1), draws)
    assert move == ("width", 1) and point == replace(size.centre, width=48)
    around = {size.centre: 2.0, **dict.fromkeys(size.moves(size.centre).values(), 3.0)}
    second = replace(size.centre, depth=2)
    around[second] = 2.5
    _, point = tournament.next_step(size, around, None, draws)
    assert point not in around and point in size.moves(second).values(), "from the next best"
    size = space.SIZES[tiny]
    size = replace(size, learning_rates=(1e-3, 1e-3))
    found = {size.centre: 2.0, replace(size.centre, width=32): 2.0}
    with pytest.raises(load("tournament_runs").Failed, match="more trials than points"):
        tournament.next_step(size, found, None, draws)
