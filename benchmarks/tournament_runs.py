"""The runs of benchmarks/tournament.py: their commands, and what becomes of them."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tournament_space import MODELS, SIZES, Point, Size, described, settings_of

from mambabyte.errors import UserError
from mambabyte.runs.run import Run, read_run

CORPORA = ("books", "code")
SEEDS = (1, 2, 3)
RUN_NAME = re.compile(r"trial_\d+|(compute|time)_\d+")  # of a run's folder
RESULT = "result.json"  # of a run that has ended, in its folder
GUESSING = 8.0  # bits per byte of a trial that has none: those of a model that knows nothing
_ALONE = threading.Lock()  # Hydra composes in one thread at a time, and so are models built
_CHUNKED_BYTES = 65_536  # of the validation split, to count chunks in
CURVE = 8  # points of a winner's curve
_WARMUP = 10  # the part of the steps in which the learning rate rises
_DIVERGED = ("training diverged", "outputs NaN or infinite logits")


class Stopped(Exception):
    """The time is up, or a signal came, before a run ended."""


class Failed(Exception):
    """A run ended without a result, and not because it diverged; its text is a sentence."""


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    corpora: the overrides that choose each; models: those that this version has.
    """

    size_name: str
    size: Size
    corpora: dict[str, tuple[str, ...]]
    models: tuple[str, ...]
    trials: int
    seeds: tuple[int, ...]
    runs: Path
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: argparse.Namespace) -> Plan:
        given = {key: getattr(options, key) for key in ("trial_flops", "final_flops", "final_seconds")}
        size = replace(
            SIZES[options.size], **{key: value for key, value in given.items() if value is not None}
        )
        books = ("data=hf", f"data.path={options.books}") if options.books else ("data=pg19",)
        code = ("data=stdlib",) if options.size == "cpu" else ("data=code",)
        if options.size != "cpu":
            code += ("data.streaming=true",)
            books += (f"data.streaming={str(not options.books).lower()}",)
        chosen = {"books": books, "code": code}
        return cls(
            options.size,
            size,
            {name: (*chosen[name], "data.windows=packed") for name in options.corpora},
            tuple(name for name in dict.fromkeys(options.models) if not MODELS[name].missing),
            options.trials,
            tuple(dict.fromkeys(options.seeds)),
            options.runs,
            tuple(options.overrides),
        )

    @property
    def turns(self) -> list[tuple[str, int]]:
        """The turns of a search: the corpus of each, and how many trials it has had there at the end. After
        the first turn on every corpus each has one of a quarter of the trials, and one of a single trial."""
        if len(self.corpora) == 1:
            return [(corpus, self.trials) for corpus in self.corpora]
        late = self.trials // 4
        ends = [self.trials - late - 1, self.trials - 1, self.trials]
        return [(corpus, end) for end in sorted({max(1, end) for end in ends}) for corpus in self.corpora]

    def trial(self, corpus: str, model: str, number: int, point: Point) -> Job:
        return Job(self, corpus, model, "trial", number, 0, point)

    def job_of(self, row: dict[str, Any]) -> Job:
        point = Point(**{key: row[key] for key in Point.__dataclass_fields__})
        return Job(self, row["corpus"], row["model"], row["kind"], row["number"], row["seed"], point)


@dataclass(frozen=True)
class Job:
    """One run. kind: trial | compute | time; number: of a trial; seed: 0 of trials."""

    plan: Plan
    corpus: str
    model: str
    kind: str
    number: int
    seed: int
    point: Point

    @property
    def folder(self) -> Path:
        name = f"trial_{self.number:02}" if self.kind == "trial" else f"{self.kind}_{self.seed}"
        return self.plan.runs / self.corpus / self.model / name

    @cached_property
    def command(self) -> list[str]:
        """The whole command; UserError where the model refuses the point."""
        size, steps = self.plan.size, self.steps
        always = [f"seed={self.seed}", f"optimizer.warmup_steps={steps // _WARMUP}"]
        always += ["callbacks.sample_every=0", "callbacks.sample_bytes=0", "callbacks.checkpoint_every=0"]
        always += [f"callbacks.validate_bytes={size.validate_bytes}"]
        if self.kind == "trial":
            always += [f"callbacks.validate_every={steps}", "callbacks.evaluate_bytes=0"]
        else:
            every = max(1, steps // CURVE) if self.kind == "compute" else 0
            most = "null" if size.evaluate_bytes is None else size.evaluate_bytes
            always += [f"callbacks.validate_every={every}", f"callbacks.evaluate_bytes={most}"]
        if self.kind == "time":
            budget = ["budget.training_flops=null", f"budget.training_seconds={size.final_seconds:g}"]
            always += [*budget, "trainer.max_steps=null"]
        else:
            always += [self._flops]
        return ["mambabyte", "train", *self._settings, *always, f"run_dir={self.folder}"]

    @property
    def _flops(self) -> str:
        flops = self.plan.size.final_flops if self.kind == "compute" else self.plan.size.trial_flops
        return f"budget.training_flops={flops:g}"

    @property
    def _settings(self) -> list[str]:
        size, corpus = self.plan.size, self.plan.corpora[self.corpus]
        return [*settings_of(MODELS[self.model], size, self.point), *corpus, *self.plan.overrides]

    @cached_property
    def steps(self) -> int:
        """Optimizer steps at this job's compute. One at equal time has the warm-up of a trial, and so its."""
        from mambabyte.training.planning.budget import within_budget
        from mambabyte.training.settings import TrainSettings

        with _ALONE:
            steps = within_budget(TrainSettings.compose(*self._settings, self._flops)).trainer.max_steps
        assert steps is not None
        return steps

    @property
    def columns(self) -> dict[str, Any]:
        keys = ("corpus", "model", "kind", "number", "seed")
        own = {key: getattr(self, key) for key in keys}
        return {"size": self.plan.size_name, **own, **described(self.point)}

    def row(self, outcome: str, command: Sequence[str]) -> dict[str, Any]:
        """The row of a run that has ended, from its folder. outcome: finished, or why it has no figure."""
        row = {**self.columns, "outcome": outcome, "bits_per_byte": GUESSING, "curve": []}
        figures = ("parameters", "steps", "bytes_trained", "training_flops", "measured_flops")
        row |= dict.fromkeys((*figures, "training_seconds"))
        row |= {"stateful_bits_per_byte": None, "machine": one_thread_of(), "command": shlex.join(command)}
        if outcome != "finished":
            return row
        with _ALONE:
            run = read_run(self.folder)
            measured = None if self.kind == "trial" else measured_flops(self.folder, run)
        row |= {"parameters": run.parameters, "steps": run.step, "bytes_trained": run.bytes_trained}
        row |= {"training_flops": run.training_flops, "training_seconds": round(run.seconds or 0.0, 1)}
        row["curve"] = [(taken * run.training_flops_per_byte, bits) for taken, _, bits in run.curve]
        row["bits_per_byte"] = run.validation.bits_per_byte if run.validation else run.curve[-1][2]
        row["stateful_bits_per_byte"] = run.stateful.bits_per_byte if run.stateful else None
        row["measured_flops"] = measured
        return row


def measured_flops(folder: Path, run: Run) -> float | None:
    """Of a run's training, by the chunks that its model makes of some validation bytes; None if the model's
    cost does not depend on the data."""
    import numpy as np
    import torch

    from mambabyte.checkpoints import load_model
    from mambabyte.data.settings import DataSettings

    model = load_model(folder)
    if not hasattr(model, "chunk_rates"):
        return None
    corpus, length = DataSettings.from_settings(run.data, "data").prepare("validation"), run.context_length
    count = min(_CHUNKED_BYTES, corpus.num_bytes) // length
    windows = torch.from_numpy(np.array(corpus.bytes[: count * length])).view(count, length)
    with torch.no_grad():
        rates = model.chunk_rates(windows)
    return run.bytes_trained * model.flops_per_byte(length, rates).training


def one_thread_of() -> str:
    """The machine, in a line, with the one thread that every run has."""
    from measuring import machine

    return machine(threads=1)


def first_trials(plan: Plan, corpus: str, model: str) -> list[Job]:
    """The trials at points that are the same for all models: a quarter, rounded up, of those on the first
    corpus."""
    if corpus != next(iter(plan.corpora)):
        return []
    points = plan.size.drawn(math.ceil(plan.trials / 4))
    return [plan.trial(corpus, model, number, point) for number, point in enumerate(points)]


def finals(plan: Plan, corpus: str, model: str, point: Point, kind: str) -> Iterator[Job]:
    """The runs of a model's best point, one for each seed."""
    for seed in plan.seeds:
        yield Job(plan, corpus, model, kind, 0, seed, point)


def best_of(trials: Sequence[tuple[float, Point]]) -> Point:
    """The point of the lowest bits per byte; of equal ones, the first."""
    return min(trials, key=lambda each: each[0])[1]


class Machine:
    """Runs jobs until a time (of `time.monotonic`) or until it is stopped.

    ended: why it starts no more runs, as a phrase; None if it does.
    """

    def __init__(self, until: float | None = None) -> None:
        self.ended: str | None = None
        self._until = until
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Start no more runs; those that go on save where they are."""
        with self._lock:
            self.ended = "stopped"
            for process in self._running:
                process.send_signal(signal.SIGINT)

    def finish(self, job: Job) -> dict[str, Any]:
        """The result of a job, which is run unless it has ended before.

        Raises:
            Stopped: before it ended. Failed: it has no result.
            UserError: its result cannot be read.
        """
        refusal, command = "", []
        try:
            command = job.command
        except UserError as fault:  # a model may refuse a place of the search space
            if job.kind != "trial":
                raise Failed(f"{_named(job)}: {fault}") from fault
            refusal = f"refused: {fault}"
        place = job.folder / RESULT
        found = result_of(place) if place.exists() else None
        if found and found["command"]:  # that of a refused trial has none, and is made again
            if found["command"] != shlex.join(command):
                raise Failed(f"{job.folder} holds a run of other settings: choose another folder by --runs")
            return found
        if refusal:
            return _kept(job, job.row(refusal, command))
        if self.ended is None and self._until is not None and time.monotonic() > self._until:
            self.ended = "the hours are over"
        return _kept(job, job.row(self._outcome(job, command), command))

    def _outcome(self, job: Job, command: Sequence[str]) -> str:
        """Run a command in a session of its own, so that only `stop` signals it."""
        with self._lock:
            if self.ended:
                raise Stopped
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            self._running.add(process)
        said = process.communicate()[1]
        with self._lock:
            self._running.discard(process)
        if process.returncode == 0:
            return "finished"
        if self.ended and process.returncode in (75, 130, -signal.SIGINT):
            raise Stopped
        if any(sentence in said for sentence in _DIVERGED):
            return "diverged"
        lines = [line for line in said.splitlines() if line.strip()] or ["it says nothing"]
        raise Failed(f"{_named(job)} failed with code {process.returncode}: {lines[-1]}")


def result_of(place: Path) -> dict[str, Any]:
    """The result in a run's folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = json.loads(place.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"command", "outcome", "bits_per_byte"} <= found.keys():
        raise UserError(f"{place} is no result of a run: remove its folder, and the run is made again")
    return found


def _kept(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """The result, once it is in the job's folder, whole or not at all."""
    job.folder.mkdir(parents=True, exist_ok=True)
    written = job.folder / f"{RESULT}.tmp"
    written.write_text(json.dumps(result))
    written.replace(job.folder / RESULT)
    if job.kind == "trial":  # nobody asks for their weights again
        shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    print(f"{_named(job)}: {result['bits_per_byte']:.4f} ({result['outcome']})", file=sys.stderr)
    return result


def _named(job: Job) -> str:
    which = f"trial {job.number}" if job.kind == "trial" else f"equal {job.kind}, seed {job.seed}"
    return f"{job.corpus}, {job.model}, {which}"
