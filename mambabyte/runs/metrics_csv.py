"""Reading and writing metrics.csv."""

import csv
from collections.abc import Iterable, Mapping
from io import SEEK_END, StringIO
from pathlib import Path
from typing import Any

from mambabyte.errors import UserError
from mambabyte.runtime.atomic_write import atomic_write

COLUMNS = (
    *("step", "bytes", "seconds", "bits_per_byte", "validation_bits_per_byte"),
    *("learning_rate", "gradient_norm", "bytes_per_second", "model_flops_utilization", "peak_memory_bytes"),
    *("clipped_share", "skipped_steps", "delta_mean", "delta_minimum", "delta_maximum"),
    *("A_mean", "A_minimum", "A_maximum"),
)
PART = "validation_bits_per_byte/"  # with the name of a mixture's part, a column of such a run
CHUNKS = (
    "bytes_per_chunk/"  # with 1, 2, .. for the outermost chunks and those within, of a model that has them
)
# of a task's run: the shares of answers that are right, and of sequences whose answers all are
ACCURACY = ("validation_accuracy", "validation_sequence_accuracy")
_NEVER_EMPTY = ("step", "bytes", "seconds", "bits_per_byte")
_INTEGERS = ("step", "bytes", "peak_memory_bytes", "skipped_steps")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics.csv, with empty cells as None; no rows if there is no such file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            for name in reader.fieldnames or ():
                if name not in COLUMNS and not is_of_some_runs(name):
                    raise ValueError(f"there is no column {name[:40]!r}")
            return [_numbers(row) for row in reader if None not in row.values()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"'{path}' is damaged or of another version ({error}): move it away to go on without its rows"
        ) from error


def _numbers(row: Mapping[str, str]) -> dict[str, Any]:
    if missing := [name for name in _NEVER_EMPTY if not row.get(name)]:
        raise ValueError(f"a row has no {missing[0]}")
    return {name: _number(name, cell) if cell else None for name, cell in row.items()}


def _number(column: str, cell: str) -> float:
    try:
        return int(cell) if column in _INTEGERS else float(cell)
    except (TypeError, ValueError):  # TypeError: more cells than columns
        raise ValueError(f"{column or 'a cell too many'} is {str(cell)[:40]!r}") from None


def is_of_some_runs(column: str) -> bool:
    """Whether only the runs of a mixture, of a task or of a model of chunks have a column of this name."""
    return column.startswith((PART, CHUNKS)) or column in ACCURACY


def write_metrics(path: Path, rows: Iterable[Mapping[str, Any]], further: Iterable[str] = ()) -> None:
    """Write ``rows`` to a metrics.csv, replacing an existing one; ``further`` are the columns that only some
    runs have."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, (*COLUMNS, *further))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row to a metrics.csv, which has its header."""
    with path.open("r+", newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file))
        file.seek(0, SEEK_END)
        csv.DictWriter(file, columns).writerow(row)
