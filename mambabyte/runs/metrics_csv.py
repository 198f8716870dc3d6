"""Reading and writing metrics.csv."""

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from mambabyte.runtime.atomic_write import atomic_write

COLUMNS = (
    *("step", "bytes", "seconds", "bits_per_byte", "validation_bits_per_byte"),
    *("learning_rate", "gradient_norm", "bytes_per_second", "model_flops_utilization", "peak_memory_bytes"),
    *("clipped_share", "skipped_steps", "delta_mean", "delta_minimum", "delta_maximum"),
    *("A_mean", "A_minimum", "A_maximum"),
)
_INTEGERS = ("step", "bytes", "peak_memory_bytes", "skipped_steps")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics.csv, with empty cells as None; no rows if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    return [{name: _number(name, cell) if cell else None for name, cell in row.items()} for row in rows]


def _number(column: str, cell: str) -> float:
    return int(cell) if column in _INTEGERS else float(cell)


def write_metrics(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` to a metrics.csv, replacing an existing one."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row to a metrics.csv."""
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, COLUMNS).writerow(row)
