"""A tournament of byte-level models on equal terms: as many tuning trials for each, at equal compute.

    python benchmarks/tournament.py --books FOLDER --out docs/benchmarks     # with --hours 1, again and again
    python benchmarks/tournament.py --books FOLDER --plan                    # only say what it will take
    python benchmarks/tournament.py --books FOLDER --list                    # only print the commands
    python benchmarks/tournament.py --page --out docs/benchmarks [--page-file docs/comparison.md]
    python benchmarks/tournament.py --size 60m --processes 1 --runs runs/tournament_60m --out OUT   # on a GPU

Each model is tuned by trials at equal compute over one search space (tournament_space.py,
tournament_search.py); then its best point on each corpus is trained with seeds 1, 2, 3 at a larger equal
compute, and then at equal time. Trials and runs at equal compute are side by side, one thread each; a run at
equal time has the machine to itself, also on one thread. Each run is a command of its own. A run that
diverges counts as 8 bits per byte, those of guessing. The script may be stopped at any moment: the same call
goes on, and a run that Ctrl-C or SIGTERM stopped resumes from its checkpoint. Written are tournament.csv,
tournament_curves.csv, tournament.png and tournament.md; paths are in the CSV as they are given.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from script import positive, positive_int, run_script, seed_number
from tournament_csv import CURVES, KINDS, RESULTS, read, write_curves, write_results
from tournament_page import draw, page
from tournament_runs import (
    CORPORA,
    RESULT,
    RUN_NAME,
    SEEDS,
    Failed,
    Job,
    Machine,
    Plan,
    Stopped,
    best_of,
    finals,
    first_trials,
    result_of,
)
from tournament_search import Search
from tournament_space import MODELS, SIZES

from mambabyte.errors import UserError

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--size", choices=SIZES, default="cpu", help="what is searched, and what it costs")
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    arguments.add_argument(
        "--books", type=Path, help="a folder of parquet files as PG19's, for the corpus books"
    )
    arguments.add_argument(
        "--trials",
        type=positive_int,
        default=13,
        help="of each model on each corpus; another number needs another --runs",
    )
    arguments.add_argument(
        "--seeds", type=seed_number, nargs="+", default=list(SEEDS), help="of the winners' runs"
    )
    arguments.add_argument("--trial-flops", type=positive, help="of training, of a trial")
    arguments.add_argument("--final-flops", type=positive, help="of training, of a winner's run")
    arguments.add_argument(
        "--final-seconds", type=positive, help="of training, of a winner's run at equal time"
    )
    arguments.add_argument(
        "--processes", type=positive_int, default=2, help="runs side by side, but for equal time"
    )
    arguments.add_argument("--hours", type=positive, help="start no run after so many")
    arguments.add_argument("--runs", type=Path, default=Path("runs/tournament"), help="where the runs go")
    arguments.add_argument("--out", type=Path, help="folder for the CSVs, the figure and the page")
    arguments.add_argument("--page-file", type=Path, help="the page; OUT/tournament.md if it is left out")
    arguments.add_argument("--list", action="store_true", help="only print the commands that are known")
    arguments.add_argument("--plan", action="store_true", help="only say what it will take, from a few steps")
    arguments.add_argument("--page", action="store_true", help="run nothing: draw and write from the CSVs")
    arguments.add_argument("overrides", nargs="*", help="further settings of every run")
    options = arguments.parse_args()
    if options.page and options.out is None:
        arguments.error("--page needs --out")
    if options.page:
        write_page(options.out, options.page_file)
        return
    if options.size == "cpu" and "books" in options.corpora and options.books is None:
        arguments.error("--books says where the books are; or choose --corpora code")
    if options.plan and options.size != "cpu":
        arguments.error("--plan times steps on this CPU, so it is for --size cpu alone")
    if options.page_file is not None and not options.page_file.absolute().parent.is_dir():
        arguments.error(f"there is no folder for --page-file {options.page_file}")
    plan = Plan.of(options)
    for name in options.models:
        if MODELS[name].missing:
            print(f"{name} is left out: this version has no model={name}", file=sys.stderr)
    check(plan)
    if options.list:
        print_commands(plan)
    elif options.plan:
        from tournament_estimate import estimate

        print(estimate(plan, options.processes))
    else:
        if options.out is None:
            arguments.error("--out says where the figures go")
        options.out.mkdir(parents=True, exist_ok=True)
        raise SystemExit(run(plan, options))


def check(plan: Plan) -> None:
    """See that every model can be trained at the centre of the search space, before anything is.

    Raises:
        UserError: one cannot, with these budgets and further settings.
    """
    for corpus in plan.corpora:
        for name in plan.models:
            try:
                _ = plan.trial(corpus, name, 0, plan.size.centre).command
            except UserError as fault:
                raise UserError(f"{corpus}, {name}: {fault}") from fault


def run(plan: Plan, options: argparse.Namespace) -> int:
    """Run what is unfinished, then write what is finished, if anything is; the exit code."""
    until = None if options.hours is None else time.monotonic() + 3600 * options.hours
    machine = Machine(until)
    before = {each: signal.signal(each, lambda *_: machine.stop()) for each in _STOPPING}
    try:
        faults = run_all(plan, machine, options.processes)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if results := finished(options.runs):
        write_results(results, options.out / RESULTS)
        write_curves(results, options.out / CURVES)
        write_page(options.out, options.page_file)
    for fault in faults:
        print(fault, file=sys.stderr)
    if machine.ended:
        print(f"{machine.ended}; the same command goes on", file=sys.stderr)
    return 75 if machine.ended else int(bool(faults))


def run_all(plan: Plan, machine: Machine, processes: int) -> list[str]:
    """Tune every model, then run its best point on every corpus; what failed, in sentences."""
    searches = {name: Search(plan, machine, name) for name in plan.models}
    faults = in_turns(
        [
            (lambda search=search, number=number: search.turn(number))
            for number in range(len(plan.turns))
            for search in searches.values()
        ],
        processes,
    )

    def all_of(kind: str) -> Iterable[Callable[[], object]]:
        return [
            (lambda job=job: machine.finish(job))
            for corpus in plan.corpora
            for name, search in searches.items()
            if search.ended
            for job in finals(plan, corpus, name, search.best(corpus), kind)
        ]

    faults += in_turns(all_of("compute"), processes)
    return faults + in_turns(all_of("time"), 1)


def in_turns(calls: Iterable[Callable[[], object]], processes: int) -> list[str]:
    """Make the calls, some at a time; what failed, in sentences. A call that is stopped is no failure."""
    faults = []

    def make(call: Callable[[], object]) -> None:
        try:
            call()
        except Stopped:
            pass
        except (Failed, UserError) as fault:
            faults.append(str(fault))

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(make, calls))
    return faults


def finished(runs: Path) -> list[dict[str, Any]]:
    """The results of all runs of a folder that have ended, in a fixed order."""
    found = [result_of(path) for path in runs.glob(f"*/*/*/{RESULT}") if RUN_NAME.fullmatch(path.parent.name)]
    models, kinds = list(MODELS), list(KINDS)
    return sorted(
        found,
        key=lambda each: (
            *(each["corpus"], models.index(each["model"]), kinds.index(each["kind"])),
            *(each["number"], each["seed"]),
        ),
    )


def write_page(out: Path, place: Path | None) -> None:
    """Draw and write from the CSVs.

    Raises:
        UserError: they have no result.
    """
    results, curves, lengths = read(out)
    if not results:
        raise UserError(f"there is no result in {out / RESULTS}")
    draw(results, curves, lengths, out)
    place = place or out / "tournament.md"
    place.write_text(page(results, lengths, out, place))


def print_commands(plan: Plan) -> None:
    """The commands that are known before the results: of the first trials, and of what has a best point."""
    results = {
        (each["corpus"], each["model"], each["kind"], each["number"]): each for each in finished(plan.runs)
    }
    for corpus in plan.corpora:
        for name in plan.models:
            jobs: list[Job] = list(first_trials(plan, corpus, name))
            trials = [results.get((corpus, name, "trial", number)) for number in range(plan.trials)]
            known = [each for each in trials if each is not None]
            jobs += [plan.job_of(each) for each in known[len(jobs) :]]
            for job in jobs:
                try:
                    print(shlex.join(job.command))
                except UserError as fault:
                    print(f"# {corpus}, {name}, trial {job.number} is refused: {fault}")
            if len(known) < plan.trials:
                later = plan.trials - len(jobs)
                print(f"# {corpus}, {name}: {later} more trials, which depend on these; then the best point")
                continue
            point = best_of([(each["bits_per_byte"], plan.job_of(each).point) for each in known])
            for kind in ("compute", "time"):
                for job in finals(plan, corpus, name, point, kind):
                    print(shlex.join(job.command))


if __name__ == "__main__":
    run_script("tournament.py", main)
