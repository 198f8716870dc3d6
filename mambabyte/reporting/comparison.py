"""Which runs may be compared: those measured on the same bytes by the same protocol."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambabyte.runs.run import Measurement, Run
from mambabyte.runtime.units import counted, short_count

_SAME_DATA_ANYWAY = ("workers", "folder", "retries")


@dataclass(frozen=True)
class Comparison:
    """Runs whose figures were taken alike, best first; those without a figure stand last.

    Attributes:
        measured_on: the data and the protocol in words; None if no run has been measured.
        names, labels: of each run: its directory, shortened, and its model with its size.
    """

    measured_on: str | None
    runs: list[Run]
    names: list[str]
    labels: list[str]


def compare(runs: Sequence[Run]) -> tuple[list[Comparison], list[str]]:
    """The comparisons that can be made of ``runs``, and sentences on what they must not be taken for.

    A run without a figure stands with the runs that it will be measured like: of the same data and context.
    """
    keys = {_setting(run): _taken(run.validation) for run in runs if run.validation}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = _taken(run.validation) if run.validation else keys.get(_setting(run), _setting(run))
        groups.setdefault(key, []).append(run)
    labels, names = _labels(runs), _names([run.directory for run in runs])
    comparisons = []
    for members in groups.values():
        members.sort(key=lambda run: run.validation.bits_per_byte if run.validation else float("inf"))
        comparisons.append(
            Comparison(
                next((_in_words(run.validation) for run in members if run.validation), None),
                members,
                [names[run.directory] for run in members],
                [labels[json.dumps(run.model)] for run in members],
            )
        )
    return comparisons, list(_notes(comparisons))


def _taken(figure: Measurement) -> str:
    return json.dumps([figure.data_fingerprint, figure.bytes, figure.protocol, figure.precision])


def _setting(run: Run) -> str:
    data = {key: value for key, value in run.data.items() if key not in _SAME_DATA_ANYWAY}
    return json.dumps([data, run.context_length], default=str)


def _in_words(figure: Measurement) -> str:
    protocol = figure.protocol
    stride = f", stride {protocol['stride']:,}" if "stride" in protocol else ""
    return (
        f"{counted(figure.bytes, 'validation byte')} in {counted(figure.documents, 'document')} "
        f"(data {figure.data_fingerprint[:8]}), protocol {protocol['name']}, "
        f"context {protocol['context_length']:,} bytes{stride}, {figure.precision}"
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
                "The curves of one figure score different shares of the validation data during training: the "
                f"first {' or '.join(f'{number:,}' for number in scored)} bytes; the stars score all of it."
            )


def _labels(runs: Sequence[Run]) -> dict[str, str]:
    """For each model, by its description: its class and size, and what else tells two of one name apart."""
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


def _names(directories: Sequence[Path]) -> dict[Path, str]:
    """The directories as seen from the deepest one that holds them all."""
    above = os.path.commonpath([directory.parent for directory in directories])
    return {directory: os.path.relpath(directory, above) for directory in directories}
