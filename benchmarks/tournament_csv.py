"""The CSVs of benchmarks/tournament.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from csv_rows import read_rows, write_rows
from tournament_lengths import LENGTHS, read_lengths
from tournament_space import MODELS, SIZES

from mambabyte.errors import UserError

Rows = Sequence[dict[str, Any]]
RESULTS, CURVES = "tournament.csv", "tournament_curves.csv"
KINDS = ("trial", "compute", "time")
RESULT_COLUMNS = (
    *("size", "corpus", "model", "kind", "number", "seed", "width", "depth", "learning_rate"),
    *("batch_bytes", "context_length", "parameters", "steps", "bytes_trained", "training_flops"),
    *("measured_flops", "training_seconds", "bits_per_byte", "stateful_bits_per_byte", "outcome"),
    *("machine", "command"),
)
CURVE_COLUMNS = ("corpus", "model", "seed", "training_flops", "bits_per_byte")
_WORDS = ("size", "corpus", "model", "kind", "outcome", "machine", "command")
_WHOLE = ("number", "seed", "width", "depth", "batch_bytes", "context_length", "parameters", "steps")


def write_results(results: Rows, path: Path) -> None:
    _write(results, RESULT_COLUMNS, path)


def write_curves(results: Rows, path: Path) -> None:
    """The validations during the runs at equal compute."""
    points: Iterable[dict[str, Any]] = (
        {**row, "training_flops": flops, "bits_per_byte": bits}
        for row in results
        if row["kind"] == "compute"
        for flops, bits in row["curve"]
    )
    _write(list(points), CURVE_COLUMNS, path)


def _write(rows: Rows, columns: Sequence[str], path: Path) -> None:
    write_rows([{key: row[key] for key in columns if key in row} for row in rows], columns, path)


def read(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the CSVs: results, curves, lengths; none of a file that is not there.

    Raises:
        UserError: a file has rows that no tournament writes.
    """
    results, curves = (
        read_rows(folder / name, _WORDS, _WHOLE, columns)
        for name, columns in ((RESULTS, RESULT_COLUMNS), (CURVES, CURVE_COLUMNS))
    )
    seen = set()
    for line, row in enumerate(results, 2):
        key = tuple(row[each] for each in ("corpus", "model", "kind", "number", "seed"))
        known = row["model"] in MODELS and row["kind"] in KINDS and row["size"] in SIZES
        bits = row["bits_per_byte"]
        if not known or bits is None or not 0 < bits < math.inf or key in seen:
            twice = "is there twice" if key in seen else "is no result of a tournament"
            raise UserError(f"{folder / RESULTS}, line {line}: {', '.join(map(str, key))} {twice}")
        seen.add(key)
    return results, curves, read_lengths(folder / LENGTHS)
