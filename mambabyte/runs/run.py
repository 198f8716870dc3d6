"""A run as its directory records it: config.yaml, metrics.csv and, when it is complete, summary.json."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from mambabyte.config.settings import to_plain
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError
from mambabyte.models import config_from_dict
from mambabyte.runs.changes import with_new_names
from mambabyte.runs.metrics_csv import ACCURACY, read_metrics

_NO_RUNS_INSIDE = ("checkpoints", "wandb", "tensorboard")  # wandb writes a config.yaml too


@dataclass(frozen=True)
class Measurement:
    """A figure of summary.json, over all validation bytes, and how it was measured.

    accuracy, sequence_accuracy: of a task (data/tasks.py) only. Its ``bytes`` are answers, ``bits_per_byte``
        is over them alone, and ``documents`` are its sequences.
    """

    bits_per_byte: float
    bytes: int
    documents: int
    protocol: dict[str, Any]
    data_fingerprint: str
    precision: str
    accuracy: float | None = None
    sequence_accuracy: float | None = None

    @classmethod
    def of(cls, values: dict[str, Any] | None) -> Measurement | None:
        if values is None:
            return None
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        given = {field.name for field in fields(cls)} & values.keys()
        return cls(**{name: values[name] for name in {*needed, *given}})


@dataclass(frozen=True)
class Run:
    """One run.

    kind, model: what the model is called, and its settings.
    inference_flops_per_byte, training_flops_per_byte: in windows of ``context_length`` bytes.
    max_steps: None while the clock has not decided it.
    training_seconds: the time budget, if that decides the steps.
    seconds, bytes_per_second: spent on steps, and the median of metrics.csv; None before its first row.
    peak_memory_bytes: the largest recorded, if any.
    device, validation, stateful: None unless the run is complete and measured; the last also if the model's
        state grows.
    curve: (bytes trained, seconds, bits per byte) at each validation during training.
    accuracy_curve: (bytes trained, seconds, share of answers right) at each validation of a task's run.
    curve_bytes: how many of the validation bytes the curve is measured on.
    training: (bytes trained, seconds, bits per byte) of the training windows, a row of metrics.csv each.
    data: the ``data`` section of the configuration.
    optimizer, trainer: those sections of it.
    """

    directory: Path
    kind: str
    model: dict[str, Any]
    parameters: int
    inference_flops_per_byte: float
    training_flops_per_byte: float
    context_length: int
    learning_rate: float
    seed: int
    precision: str
    step: int
    max_steps: int | None
    training_seconds: float | None
    bytes_trained: int
    seconds: float | None
    bytes_per_second: float | None
    peak_memory_bytes: int | None
    device: str | None
    validation: Measurement | None
    stateful: Measurement | None
    curve: list[tuple[int, float, float]]
    accuracy_curve: list[tuple[int, float, float]]
    curve_bytes: int
    training: list[tuple[int, float, float]]
    data: dict[str, Any]
    optimizer: dict[str, Any]
    trainer: dict[str, Any]

    @property
    def training_flops(self) -> float:
        """Of all steps so far."""
        return self.bytes_trained * self.training_flops_per_byte

    @property
    def state(self) -> str:
        """ "complete", or how far it has come."""
        if self.validation is not None:
            return "complete"
        if self.max_steps is None:
            return f"not complete: {self.seconds or 0:.0f} s of {self.training_seconds:g} s"
        if self.step >= self.max_steps:
            return "trained, not measured"
        return f"not complete: step {self.step:,} of {self.max_steps:,}"


def find_runs(paths: Iterable[str]) -> list[Path]:
    """The run directories below ``paths``, each of which is a run, a folder that holds some, or a glob.

    Raises:
        UserError: a path leads to no run.
    """
    found: dict[Path, None] = {}
    for path in paths:
        expanded = os.path.expanduser(path)
        places = [expanded] if os.path.exists(expanded) else sorted(glob.glob(expanded, recursive=True))
        runs = [run for place in places for run in _runs_below(place)]
        if not runs:
            raise UserError(f"there is no run at '{path}': give run directories, or a folder that holds some")
        found.update(dict.fromkeys(runs))
    return list(found)


def _runs_below(folder: str) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NO_RUNS_INSIDE)
        if "config.yaml" in files:
            yield Path(os.path.abspath(place))


def read_run(directory: Path) -> Run:
    """Read the run in ``directory``.

    Raises:
        UserError: one of its files is missing, damaged or of another version.
    """
    anew = "the command that trained the run writes it anew, without training again"
    with _reading(directory / "config.yaml", remedy=anew) as path:
        config = with_new_names(yaml.safe_load(path.read_text(encoding="utf-8")))
        _refuse_models_of_others(directory, config["model"])
        model = config_from_dict(config["model"])
        with torch.device("meta"):
            built = model.build()
        flops = built.flops_per_byte(config["context_length"])
        trainer, seed, data = config["trainer"], config["seed"], config["data"]
        max_steps, bytes_per_step = trainer["max_steps"], trainer["global_batch_bytes"]
        optimizer, precision = config["optimizer"], trainer["precision"]
        learning_rate = float(optimizer["learning_rate"])
        curve_bytes = config["callbacks"].get("validate_bytes")
        training_seconds = config.get("budget", {}).get("training_seconds")
        if max_steps is None:
            training_seconds = float(training_seconds)
        elif optimizer.get("decay_from") is None:  # a number of steps was asked for
            training_seconds = None
        data = to_plain(DataSettings.from_settings(data, "data")) if "source" in data else data
    rows = read_metrics(directory / "metrics.csv")
    with _reading(directory / "metrics.csv"):
        points = [(row["bytes"], row["seconds"], row["validation_bits_per_byte"]) for row in rows]
        curve = [point for point in points if point[2] is not None]
        answered = [row for row in rows if row.get(ACCURACY[0]) is not None]
        accuracy_curve = [(row["bytes"], row["seconds"], row[ACCURACY[0]]) for row in answered]
        training = [(row["bytes"], row["seconds"], row["bits_per_byte"]) for row in rows]
        rates = [row["bytes_per_second"] for row in rows]
        peaks = [row["peak_memory_bytes"] for row in rows if row.get("peak_memory_bytes")]
    with _reading(directory / "summary.json") as path:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        complete = bool(summary) and max_steps is not None and summary["step"] >= max_steps
        validation = Measurement.of(summary["validation"]) if complete else None
        stateful = Measurement.of(summary["validation_stateful"]) if complete else None
        device = summary["validation"]["device"] if validation else None
        reached: int = summary["step"] if complete else rows[-1]["step"] if rows else 0
    return Run(
        directory=directory,
        kind=built.kind,
        model=model.to_dict(),
        parameters=built.num_parameters(),
        inference_flops_per_byte=flops.inference,
        training_flops_per_byte=flops.training,
        context_length=config["context_length"],
        learning_rate=learning_rate,
        seed=seed,
        precision=precision,
        step=reached,
        max_steps=max_steps,
        training_seconds=training_seconds,
        bytes_trained=reached * bytes_per_step,
        seconds=rows[-1]["seconds"] if rows else None,
        bytes_per_second=median(rates) if rates else None,
        peak_memory_bytes=max(peaks, default=None),
        device=device,
        validation=validation,
        stateful=stateful,
        curve=curve,
        accuracy_curve=accuracy_curve,
        curve_bytes=curve_bytes,
        training=[point for point in training if math.isfinite(point[2])],  # nan: all steps were skipped
        data=data,
        optimizer=optimizer,
        trainer=trainer,
    )


_DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError),
    *(RecursionError, yaml.YAMLError, UserError),
)


class _OfOthers(UserError):
    """A run that is whole, but that this program does not read."""


def _refuse_models_of_others(directory: Path, model: dict[str, Any]) -> None:
    target = str(model["_target_"])
    if not target.startswith("mambabyte."):
        raise _OfOthers(
            f"'{directory}' trained {target}, a model that is not mambabyte's own, and a report builds no "
            "other, since a run may come from a stranger"
        )


@contextmanager
def _reading(path: Path, remedy: str = "") -> Iterator[Path]:
    try:
        yield path
    except _OfOthers:
        raise
    except _DAMAGE as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        said = f"'{path}' is damaged or of another version: {reason}"
        raise UserError(f"{said}; {remedy}" if remedy else said) from error
