"""How benchmarks/tournament.py searches: its points, its steps, and where they lead."""

from __future__ import annotations

import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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


def searched(load, plan, bits, model: str = "lstm"):
    """A search whose turns have ended, and the points of each turn."""
    machine, points = Measured(bits), []
    search = load("tournament_search").Search(plan, machine, model)
    for number in range(len(plan.turns)):
        begun = len(machine.jobs)
        search.turn(number)
        points.append([job.point for job in machine.jobs[begun:]])
    assert search.ended
    return search, machine.jobs, points


def test_the_search_goes_on_from_the_best_point(load, planned, tmp_path: Path) -> None:
    runs = load("tournament_runs")
    plan = planned("cpu", tmp_path, trials=24)
    wanted = replace(plan.size.centre, width=64, depth=2, context_length=128)

    def bits(point) -> float:
        away = math.log2(point.width / wanted.width) ** 2 + abs(point.depth - wanted.depth)
        away += abs(math.log(point.learning_rate / wanted.learning_rate))
        return 2 + away / 10 + math.log2(point.context_length / 128) / 10

    assert plan.turns == [("books", 24)]
    search, jobs, (points,) = searched(load, plan, bits)
    again, _, others = searched(load, plan, bits)
    assert others == [points] and again.best("books") == search.best("books"), "the same again"
    assert len(points) == len(set(points)) == 24 and [job.number for job in jobs] == [*range(24)]
    assert points[:6] == [job.point for job in runs.first_trials(plan, "books", "mambabyte")]
    repeated, around = 0, plan.size.moves
    for number in range(6, 24):
        before, point = min(points[:number], key=bits), points[number]
        moves = {other: move for move, other in around(before).items()}
        assert point in moves or set(moves) <= set(points[:number]), "one step from the best"
        if point in moves and bits(point) < bits(before) and number < 23:
            more = around(point).get(moves[point])
            if more is not None and more not in points[:number]:
                assert points[number + 1] == more, "a change that gave a new best point is made once more"
                repeated += 1
    assert repeated > 0
    best = search.best("books")
    assert (best.width, best.depth, best.context_length) == (64, 2, 128)


def test_the_corpora_take_turns(load, planned, tmp_path: Path) -> None:
    plan = planned("cpu", tmp_path, trials=13, corpora=["books", "code"])
    assert plan.turns == [(corpus, end) for end in (9, 12, 13) for corpus in ("books", "code")]

    def bits(point) -> float:
        away = abs(math.log(point.learning_rate / 2e-2)) + point.width / 1000 + point.depth / 100
        return 2 + away + math.log2(point.context_length) / 10 + math.log2(point.batch_bytes) / 10

    _, jobs, turns = searched(load, plan, bits)
    assert [job.corpus for job in jobs] == [
        corpus for count in (9, 3, 1) for corpus in ["books"] * count + ["code"] * count
    ]
    assert [job.number for job in jobs] == [*range(9), *range(9), *[9, 10, 11] * 2, 12, 12]
    tried = {"books": list(turns[0]), "code": []}
    exchanged = 0
    for points, (corpus, _), (before, _) in zip(turns[1:], plan.turns[1:], plan.turns, strict=False):
        found = min(tried[before], key=bits)
        if found not in tried[corpus]:
            assert points[0] == found, "what is found on one corpus is tried on the other"
            exchanged += 1
        tried[corpus] += points
    assert exchanged >= 2
    assert load("tournament_runs").first_trials(plan, "code", "lstm") == []
    same = {**vars(plan), "corpora": {"code": plan.corpora["code"]}}
    assert load("tournament_runs").first_trials(type(plan)(**same), "code", "lstm") != []


@pytest.mark.parametrize("trials", [1, 2, 3, 4, 5])
def test_few_trials_are_enough_for_turns(planned, tmp_path: Path, trials: int) -> None:
    plan = planned("cpu", tmp_path, trials=trials, corpora=["books", "code"])
    for corpus in ("books", "code"):
        ends = [end for each, end in plan.turns if each == corpus]
        assert ends == sorted(set(ends)) and ends[0] > 0 and ends[-1] == trials


def test_a_turn_waits_for_the_one_before_and_its_fault_ends_the_search(load, planned, tmp_path: Path) -> None:
    runs, plan = load("tournament_runs"), planned("cpu", tmp_path, corpora=["books", "code"])
    machine = Measured(lambda _: 2.0)
    search = load("tournament_search").Search(plan, machine, "lstm")
    with ThreadPoolExecutor(6) as pool:
        ended = [pool.submit(search.turn, number) for number in range(5, 0, -1)]
        assert not machine.jobs
        search.turn(0)
        assert [each.result(timeout=60) for each in ended] == [None] * 5
    assert [job.corpus for job in machine.jobs] == [*["books"] * 2, *["code"] * 2, *["books", "code"] * 2]

    machine = Measured(lambda _: 8.0)
    search = load("tournament_search").Search(plan, machine, "lstm")
    with pytest.raises(runs.Failed, match="books, lstm: none of its trials has a figure"):
        search.turn(0)
    search.turn(1)
    search.turn(2)
    assert len(machine.jobs) == 2 and not search.ended


def test_a_step_that_helped_is_made_again_and_one_untried_is_found(load, tiny: str) -> None:
    searching, space = load("tournament_search"), load("tournament_space")
    size, draws = space.SIZES["cpu"], random.Random(0)
    move, point = searching.next_step(size, {size.centre: 2.0}, ("width", 1), draws)
    assert move == ("width", 1) and point == replace(size.centre, width=48)
    around = {size.centre: 2.0, **dict.fromkeys(size.moves(size.centre).values(), 3.0)}
    second = replace(size.centre, depth=2)
    around[second] = 2.5
    _, point = searching.next_step(size, around, None, draws)
    assert point not in around and point in size.moves(second).values(), "from the next best"
    size = space.SIZES[tiny]
    size = replace(size, learning_rates=(1e-3, 1e-3))
    found = {size.centre: 2.0, replace(size.centre, width=32): 2.0}
    with pytest.raises(load("tournament_runs").Failed, match="more trials than points"):
        searching.next_step(size, found, None, draws)
