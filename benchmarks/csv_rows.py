"""Rows of figures as CSV files, which the pages are written from."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from mambabyte.errors import UserError


def write_rows(rows: Iterable[dict[str, Any]], columns: Sequence[str], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(
    path: Path, words: Collection[str], whole: Collection[str] = (), columns: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The rows of a file, none if there is none: columns of words as they are, whole numbers, and numbers.

    An empty cell that is no word is None.

    Args:
        columns: that it must have.

    Raises:
        UserError: a column is missing, the file is cut off, a row is not whole, or a number is none.
    """
    if not path.exists():
        return []

    def value(column: str, cell: str) -> Any:
        if column in words:
            return cell
        if not cell:
            return None
        return int(cell) if column in whole else float(cell)

    try:
        text = path.read_text()
    except ValueError as fault:
        raise UserError(f"{path} is no CSV file: {fault}") from fault
    if text and not text.endswith("\n"):
        raise UserError(f"{path} is cut off in its last line")
    reader = csv.DictReader(text.splitlines(keepends=True))
    if text and (missing := set(columns) - set(reader.fieldnames or ())):
        raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    rows = []
    for row in reader:
        try:
            if None in row or None in row.values():  # more cells than columns, or fewer
                raise ValueError
            rows.append({key: value(key, cell) for key, cell in row.items()})
        except ValueError as fault:
            raise UserError(f"{path}, line {reader.line_num}: this is no whole row of figures") from fault
    return rows
