"""mambabyte report: tables and figures over runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mambabyte.commands import Command, Flag, Words
from mambabyte.config.settings import Settings
from mambabyte.errors import UserError
from mambabyte.runtime.system_errors import cannot_write

if TYPE_CHECKING:
    from mambabyte.reporting import Comparison, tables


@dataclass
class ReportSettings(Settings):
    runs: list[str]
    form: Literal["text", "markdown", "csv", "json"] = "text"
    literature: bool = False
    out: str | None = None


def run(settings: ReportSettings) -> None:
    """Print the report in the chosen form; with ``out``, write all forms and the figures there.

    Raises:
        UserError: a path has no run, or none of the runs can be read, or ``out`` cannot be written.
    """
    from mambabyte.reporting import compare, tables
    from mambabyte.runs.run import find_runs, read_run

    readable, left_out = [], []
    for directory in find_runs(settings.runs):
        try:
            readable.append(read_run(directory))
        except UserError as fault:
            left_out.append(f"A run is left out: {fault}.")
    if not readable:
        raise UserError("\n".join(["none of these runs can be read", *left_out]))
    comparisons, notes = compare(readable)
    notes += left_out
    shown, records = tables.run_tables(comparisons), tables.measured_records(comparisons)
    if settings.literature:
        shown, records = shown + tables.literature_tables(), records + tables.published_records()
    forms = {
        "text": tables.to_text(shown, notes, max(40, shutil.get_terminal_size().columns)),
        "markdown": tables.to_markdown(shown, notes),
        "csv": tables.to_csv(records),
        "json": tables.to_json(records, notes),
    }
    print(forms[settings.form].rstrip("\n"))
    if settings.form == "csv":
        print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    if settings.out is not None:
        _write(Path(settings.out).expanduser(), comparisons, forms, shown, notes)


def _write(
    folder: Path,
    comparisons: Sequence[Comparison],
    forms: dict[str, str],
    shown: Sequence[tables.Table],
    notes: Sequence[str],
) -> None:
    from mambabyte.reporting.figures import ACCURACY_FIGURE, FIGURES, draw
    from mambabyte.reporting.html import to_html

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form, ending in (("markdown", "md"), ("csv", "csv"), ("json", "json")):
            (folder / f"report.{ending}").write_text(forms[form].rstrip("\n") + "\n", encoding="utf-8")
        images = {}
        for figure in (*FIGURES, ACCURACY_FIGURE):
            canvas = draw(figure, comparisons)
            if canvas is not None:
                canvas.savefig(folder / figure.file, dpi=150)
                images[figure.title] = (folder / figure.file).read_bytes()
        (folder / "report.html").write_text(to_html(shown, notes, images), encoding="utf-8")
    except OSError as error:
        raise cannot_write(folder, error, "--out") from error
    print(f"mambabyte: report.html, report.md, .csv, .json and the figures are in {folder}", file=sys.stderr)


COMMAND = Command(
    "compare runs in tables and figures: mambabyte report runs/compute_matched --out report",
    ReportSettings,
    run,
    flags=(
        *(Flag(f"--{form}", f"print {form}", "form", form) for form in ("markdown", "csv", "json")),
        Flag("--literature", "add what the MambaByte paper publishes", "literature"),
        Flag(
            *("--out", "write an HTML page, Markdown, CSV, JSON and PNGs there", "out"),
            metavar="FOLDER",
            short="-o",
        ),
    ),
    words=Words("runs", "RUN", "a run directory, a folder of runs such as a sweep's, or a glob"),
)
