"""Settings that depend on this machine's speed and memory: ``trainer.precision``, ``trainer.threads`` and
``trainer.micro_batch_size`` where they are ``auto``.

Rank 0 decides them once for a run and writes them to ``run_dir/measured.json``, with what they depend on. The
other ranks wait for that file, and a resumed run reads it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch

from mambabyte.config.settings import to_plain
from mambabyte.errors import UserError
from mambabyte.runs.run_directory import read_record
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.precision import PrecisionName, fastest_precision
from mambabyte.runtime.system_errors import cannot_write
from mambabyte.runtime.units import counted
from mambabyte.runtime.valid_json import valid_json
from mambabyte.training.distributed.launching import is_main_process, resolve_devices
from mambabyte.training.planning.memory_estimate import MemoryBudget, training_device
from mambabyte.training.planning.step_timing import time_steps
from mambabyte.training.settings import TrainSettings
from mambabyte.training.threads import threads_of_each

LONGEST_WAIT = 1800.0  # seconds that rank 0 may take
T = TypeVar("T", int, PrecisionName)
_REMEDY = "remove it to measure anew"
_SLOWER = 0.9  # of the best speed so far: larger sizes are not worth trying
_ENOUGH = 60.0  # seconds of trying on a CPU, after which no larger size is tried
_SPEED_DEPENDS_ON = (
    *("global_batch_bytes", "precision", "accelerator", "devices", "num_nodes", "strategy"),
    "activation_checkpointing",
)


def with_measurements(settings: TrainSettings, keep: bool = True) -> TrainSettings:
    """The settings with measured numbers where they ask for them.

    Args:
        keep: write the numbers to the run directory. They are read from there in any case.

    Raises:
        UserError: a step cannot fit; rank 0 has not answered.
    """
    record = _Record(settings.run_dir, keep)
    if settings.trainer.precision == "auto":
        precision = _precision(settings, record)
        settings = replace(settings, trainer=replace(settings.trainer, precision=precision))
    about_speed = {"model": to_plain(settings.model), "context_length": settings.context_length}
    if settings.trainer.threads == "auto":
        size = settings.trainer.micro_batch_size
        tried = _counted(settings, threads=None, micro_batch_size=1 if size == "auto" else size)
        trainer = {name: getattr(tried.trainer, name) for name in ("micro_batch_size", *_SPEED_DEPENDS_ON)}
        question = {**about_speed, "trainer": trainer}
        threads = record.answer("threads", question, lambda: best_threads(tried))
        settings = replace(settings, trainer=replace(settings.trainer, threads=threads))
    if settings.trainer.micro_batch_size == "auto":
        one = _counted(settings, micro_batch_size=1)
        trainer = {name: getattr(one.trainer, name) for name in _SPEED_DEPENDS_ON}
        question = {**about_speed, "trainer": trainer}
        size = record.answer("micro_batch_size", question, lambda: best_micro_batch_size(one))
        settings = replace(settings, trainer=replace(settings.trainer, micro_batch_size=size))
    return settings


def _precision(settings: TrainSettings, record: _Record) -> PrecisionName:
    """The faster one. Of one process it needs no record: its machine answers alike each time."""

    def decide() -> PrecisionName:
        return fastest_precision(training_device(settings.trainer.accelerator)).name

    if resolve_devices(settings.trainer).world_size == 1:
        return decide()
    return record.answer("precision", {"accelerator": settings.trainer.accelerator}, decide)


def best_threads(settings: TrainSettings) -> int:
    """One thread or all of this process's, whichever is faster in a few steps: on a machine that does other
    work too, one can be. On a GPU, all.

    Raises:
        UserError: a step cannot fit.
    """
    memory, every = MemoryBudget.of(settings), threads_of_each(int(settings.trainer.devices))
    if memory.device.type == "cuda" or every == 1:
        return every
    memory.check(int(settings.trainer.micro_batch_size))
    took = {n: time_steps(_counted(settings, threads=n), steps=5).seconds_per_step for n in (1, every)}
    for count, seconds in took.items():
        print(f"mambabyte: {counted(count, 'thread')}: {seconds:.3g} s a step", file=sys.stderr)
    return min(took, key=lambda count: took[count])


def best_micro_batch_size(settings: TrainSettings) -> int:
    """On a GPU, the largest micro-batch that runs; on a CPU, where a larger one is not always faster, the
    fastest that fits, of those that can be tried in about a minute. Only divisors of a device's share of the
    global batch count.

    Args:
        settings: with a micro-batch size of 1.

    Raises:
        UserError: not even one window at a time fits.
    """
    memory, trainer = MemoryBudget.of(settings), settings.trainer
    share = trainer.accumulation(settings.context_length, trainer.world_size)  # in windows, one at a time
    fitting = [size for size in divisors(share) if memory.fits(size)]
    if not fitting:
        memory.refuse(1)
    if memory.device.type == "cuda":
        for size in reversed(fitting):
            with suppress(torch.OutOfMemoryError):
                time_steps(_counted(settings, micro_batch_size=size), steps=2)
                return size
        memory.refuse(1)
    best, fastest, begun = fitting[0], 0.0, time.monotonic()
    for size in fitting:
        took = time_steps(_counted(settings, micro_batch_size=size), steps=5).seconds_per_step
        if 1 / took > fastest:
            best, fastest = size, 1 / took
        elif 1 / took < _SLOWER * fastest:
            break
        if time.monotonic() - begun > _ENOUGH:
            break
    return best


def divisors(number: int) -> list[int]:
    """In ascending order."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _counted(settings: TrainSettings, **changes: Any) -> TrainSettings:
    return replace(settings, trainer=resolve_devices(replace(settings.trainer, **changes)))


class _Record:
    """run_dir/measured.json: for each name, a question and its answer, a number or a precision."""

    def __init__(self, run_dir: Path, keep: bool) -> None:
        self._path = run_dir / "measured.json"
        self._keep = keep

    def answer(self, name: str, question: dict[str, Any], measure: Callable[[], T]) -> T:
        deadline = time.monotonic() + LONGEST_WAIT
        while (known := self._known(name, question)) is None and not is_main_process():
            if time.monotonic() > deadline:
                raise UserError(
                    f"rank 0 has not written {name} to '{self._path}' in {LONGEST_WAIT / 60:.0f} minutes: "
                    "run_dir must lie on a file system that all nodes share; or set "
                    f"trainer.{name}= yourself"
                )
            time.sleep(0.2)
        if known is None:
            print(f"mambabyte: measuring to choose trainer.{name}", file=sys.stderr)
            known = measure()
            print(f"mambabyte: trainer.{name}={known}", file=sys.stderr)
            if self._keep:
                self._write(name, {"question": question, "answer": known})
        return known

    def _known(self, name: str, question: dict[str, Any]) -> Any:
        entry = self._read().get(name)
        if entry is None:
            return None
        answer = entry.get("answer") if isinstance(entry, dict) else None
        is_number = type(answer) is int and answer >= 1
        if not (answer in get_args(PrecisionName) if name == "precision" else is_number):
            raise UserError(f"'{self._path}' cannot be read (it has no valid {name}); {_REMEDY}")
        return answer if entry.get("question") == question else None

    def _read(self) -> dict[str, Any]:
        return read_record(self._path, {}, _REMEDY)

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        text = valid_json({**self._read(), name: entry}, indent=2)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as file:
                file.write(text.encode())
        except OSError as error:
            raise cannot_write(self._path.parent, error, "run_dir=") from error
