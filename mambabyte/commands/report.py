"""mambabyte report: tables and figures over runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mambabyte.errors import UserError
from mambabyte.reporting import Comparison, compare, tables
from mambabyte.reporting.figures import FIGURES, draw
from mambabyte.reporting.html import to_html
from mambabyte.runs.run import find_runs, read_run

Form = Literal["text", "markdown", "csv", "json"]


def run(runs: Sequence[str], form: Form, literature: bool, output: str | None) -> int:
    """Print the report on ``runs`` in ``form``; with ``output``, write all forms and the figures there.

    Raises:
        UserError: a path has no run, or none of the runs can be read, or ``output`` cannot be written.
    """
    readable, left_out = [], []
    for directory in find_runs(runs):
        try:
            readable.append(read_run(directory))
        except UserError as fault:
            left_out.append(f"A run is left out: {fault}.")
    if not readable:
        raise UserError("\n".join(["none of these runs can be read", *left_out]))
    comparisons, notes = compare(readable)
    notes += left_out
    shown = tables.run_tables(comparisons) + (tables.literature_tables() if literature else [])
    records = tables.measured_records(comparisons) + (tables.published_records() if literature else [])
    forms = {
        "text": tables.to_text(shown, notes),
        "markdown": tables.to_markdown(shown, notes),
        "csv": tables.to_csv(records),
        "json": tables.to_json(records, notes),
    }
    print(forms[form].rstrip("\n"))
    if form == "csv":
        print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    if output is not None:
        _write(Path(output).expanduser(), comparisons, forms, shown, notes)
    return 0


def _write(
    folder: Path,
    comparisons: Sequence[Comparison],
    forms: dict[str, str],
    shown: Sequence[tables.Table],
    notes: Sequence[str],
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form, ending in (("markdown", "md"), ("csv", "csv"), ("json", "json")):
            (folder / f"report.{ending}").write_text(forms[form].rstrip("\n") + "\n", encoding="utf-8")
        images = {}
        for figure in FIGURES:
            draw(figure, comparisons).savefig(folder / figure.file, dpi=120)
            images[figure.title] = (folder / figure.file).read_bytes()
        (folder / "report.html").write_text(to_html(shown, notes, images), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error.strerror}; choose another --output") from error
    print(f"mambabyte: report.html, report.md, .csv, .json and the figures are in {folder}", file=sys.stderr)
