"""Which runs can be compared: those measured on the same bytes by the same protocol."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mambabyte.runs.run import Measurement, Run
from mambabyte.runtime.units import counted, protocol_in_words, short_count

_IRRELEVANT_DATA_SETTINGS = ("workers", "folder", "retries")
# Those that decide the weights.
_TRAINER_SETTINGS = ("max_steps", "global_batch_bytes", "precision", "gradient_clip")
_IN_COLUMNS = ("context_length", "learning_rate", "precision")  # of the table: its column "model" omits them


@dataclass(frozen=True)
class Comparison:
    """Runs measured alike, best first; those without a figure come last.

    measured_on: the data and the protocol in words; None if no run has been measured.
    names: each run's directory, shortened.
    models: each run's model and its size, and the settings in which models alike in both differ.
    labels: what tells the runs apart in a figure: their models and whatever else differs, except the seed.
    """

    measured_on: str | None
    runs: list[Run]
    names: list[str]
    models: list[str]
    labels: list[str]

    @property
    def of_task(self) -> bool:
        """Whether the runs learn a task (data/tasks.py), of which only answers are scored."""
        return any(run.accuracy_curve or (run.validation and run.validation.accuracy) for run in self.runs)


def compare(runs: Sequence[Run]) -> tuple[list[Comparison], list[str]]:
    """Group ``runs`` into comparisons; also return notes on what must not be compared.

    A run without a figure joins the runs it would be measured like: those of the same data and context.
    """
    keys = {_setting_key(run): _measurement_key(run.validation) for run in runs if run.validation}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        setting = _setting_key(run)
        key = _measurement_key(run.validation) if run.validation else keys.get(setting, setting)
        groups.setdefault(key, []).append(run)
    above = os.path.commonpath([run.directory.parent for run in runs])
    paths = [os.path.relpath(run.directory, above) for run in runs]
    labels = _labels(runs)
    if len(set(labels)) == 1:
        labels = paths if len(runs) > 1 else labels
    told = {
        run.directory: (name, model, label)
        for run, name, model, label in zip(runs, paths, _labels(runs, _IN_COLUMNS), labels, strict=True)
    }
    comparisons = []
    for members in groups.values():
        members.sort(key=lambda run: run.validation.bits_per_byte if run.validation else float("inf"))
        measured_on = next((_in_words(run, run.validation) for run in members if run.validation), None)
        words = zip(*(told[run.directory] for run in members), strict=True)
        comparisons.append(Comparison(measured_on, members, *map(list, words)))
    return comparisons, list(_notes(comparisons))


def _measurement_key(figure: Measurement) -> str:
    return json.dumps([figure.data_fingerprint, figure.bytes, figure.protocol, figure.precision])


def _setting_key(run: Run) -> str:
    data = {key: value for key, value in run.data.items() if key not in _IRRELEVANT_DATA_SETTINGS}
    return json.dumps([data, run.context_length], default=str)


def _in_words(run: Run, figure: Measurement) -> str:
    if figure.accuracy is not None:
        task = str(run.data["source"]["_target_"]).rpartition(".")[2]
        sequences = f"{counted(figure.documents, 'sequence')} of {figure.protocol['context_length']:,} bytes"
        return (
            f"{counted(figure.bytes, 'answer')} in {sequences} ({task} {figure.data_fingerprint[:8]}), "
            f"{figure.precision}"
        )
    return (
        f"{counted(figure.bytes, 'validation byte')} in {counted(figure.documents, 'document')} "
        f"(data {figure.data_fingerprint[:8]}), protocol {protocol_in_words(figure.protocol)}, "
        f"{figure.precision}"
    )


def _notes(comparisons: Sequence[Comparison]) -> Iterable[str]:
    if len(comparisons) > 1:
        yield (
            f"These are {len(comparisons)} comparisons, since the runs were not all measured on the same "
            "bytes by the same protocol: figures compare within a table, not between two."
        )
    silent = [
        name
        for comparison in comparisons
        for name, run in zip(comparison.names, comparison.runs, strict=True)
        if not (run.curve or run.training or run.validation)
    ]
    if silent:
        yield f"Nothing is recorded yet of {', '.join(silent)}."
    for comparison in comparisons:
        scored = sorted({run.curve_bytes for run in comparison.runs if run.curve})
        if len(scored) > 1:
            yield (
                "The curves of one figure score different shares of the validation data during training: "
                f"about {' or '.join(f'{number:,}' for number in scored)} bytes; the stars score all of it."
            )


def _labels(runs: Sequence[Run], without: Sequence[str] = ()) -> list[str]:
    """Each run's model's class and size, and the settings that tell apart runs alike in both."""
    labels = [f"{run.kind} {short_count(run.parameters)}" for run in runs]
    settings = [_settings(run) for run in runs]
    told = []
    for label, mine in zip(labels, settings, strict=True):
        alike = [other for name, other in zip(labels, settings, strict=True) if name == label]
        different = [key for key in mine if any(other.get(key) != mine[key] for other in alike)]
        names = {key: key.rpartition(".")[2] for key in different}
        shown = [f"{name}={_shown(mine[key])}" for key, name in names.items() if name not in without]
        told.append(f"{label} ({', '.join(shown)})" if shown else label)
    return told


def _settings(run: Run) -> dict[str, Any]:
    """What decides the weights of a run, its seed excepted, under dotted names."""
    trainer = {key: run.trainer[key] for key in _TRAINER_SETTINGS if key in run.trainer}
    data = {key: value for key, value in run.data.items() if key not in _IRRELEVANT_DATA_SETTINGS}
    optimizer = dict(run.optimizer)
    if run.training_seconds is not None:  # the steps are the machine's
        trainer["training_seconds"] = run.training_seconds
        trainer.pop("max_steps")
        optimizer.pop("decay_from", None)
    sections = {"model": run.model, "optimizer": optimizer, "trainer": trainer, "data": data}
    return {"context_length": run.context_length, **dict(_flat(sections))}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
