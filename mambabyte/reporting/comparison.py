"""Which runs can be compared: those measured on the same bytes by the same protocol."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mambabyte.runs.run import Measurement, Run
from mambabyte.runtime.units import counted, protocol_in_words, short_count

_IRRELEVANT_DATA_SETTINGS = ("workers", "folder", "retries")


@dataclass(frozen=True)
class Comparison:
    """Runs measured alike, best first; those without a figure come last.

    measured_on: the data and the protocol in words; None if no run has been measured.
    names: each run's directory, shortened. labels: each run's model and its size.
    """

    measured_on: str | None
    runs: list[Run]
    names: list[str]
    labels: list[str]


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
    labels = _labels(runs)
    above = os.path.commonpath([run.directory.parent for run in runs])
    comparisons = []
    for members in groups.values():
        members.sort(key=lambda run: run.validation.bits_per_byte if run.validation else float("inf"))
        measured_on = next((_in_words(run.validation) for run in members if run.validation), None)
        names = [os.path.relpath(run.directory, above) for run in members]
        member_labels = [labels[json.dumps(run.model)] for run in members]
        comparisons.append(Comparison(measured_on, members, names, member_labels))
    return comparisons, list(_notes(comparisons))


def _measurement_key(figure: Measurement) -> str:
    return json.dumps([figure.data_fingerprint, figure.bytes, figure.protocol, figure.precision])


def _setting_key(run: Run) -> str:
    data = {key: value for key, value in run.data.items() if key not in _IRRELEVANT_DATA_SETTINGS}
    return json.dumps([data, run.context_length], default=str)


def _in_words(figure: Measurement) -> str:
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
    for comparison in comparisons:
        scored = sorted({run.curve_bytes for run in comparison.runs if run.curve})
        if len(scored) > 1:
            yield (
                "The curves of one figure score different shares of the validation data during training: "
                f"about {' or '.join(f'{number:,}' for number in scored)} bytes; the stars score all of it."
            )


def _labels(runs: Sequence[Run]) -> dict[str, str]:
    """A label for each model: its class and size, and the settings that tell apart models alike in both."""
    models: dict[str, tuple[str, dict[str, Any]]] = {
        json.dumps(run.model): (f"{run.kind} {short_count(run.parameters)}", run.model) for run in runs
    }
    labels = {}
    for key, (label, model) in models.items():
        alike = [other for name, other in models.values() if name == label]
        different = [name for name in model if any(other.get(name) != model[name] for other in alike)]
        settings = ", ".join(f"{name}={model[name]}" for name in different)
        labels[key] = f"{label} ({settings})" if settings else label
    return labels
