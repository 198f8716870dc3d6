"""The runs and the published figures as tables: plain text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mambabyte.reporting import literature
from mambabyte.reporting.comparison import Comparison
from mambabyte.runs.run import Run
from mambabyte.runtime.units import byte_count, duration, short_count
from mambabyte.runtime.valid_json import valid_json

_UNKNOWN = "-"


@dataclass(frozen=True)
class Table:
    """Cells as text; the columns titled in ``words`` hold words, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    words: tuple[str, ...] = ("model", "state", "run")
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class _Column:
    """A column of the runs' table, shown always, if any value is known, or if the values differ."""

    title: str
    value: Callable[[Run], Any]
    text: Callable[[Any], str]
    shown: Literal["always", "known", "different"] = "always"

    def is_shown(self, runs: Sequence[Run]) -> bool:
        values = {self.value(run) for run in runs} - {None}
        return {"always": True, "known": bool(values), "different": len(values) > 1}[self.shown]


_COLUMNS = (
    _Column("parameters", lambda run: run.parameters, "{:,}".format),
    _Column("FLOPs/byte", lambda run: run.inference_flops_per_byte, short_count),
    _Column("in training", lambda run: run.training_flops_per_byte, short_count),
    _Column("context", lambda run: run.context_length, "{:,}".format, "different"),
    _Column("learning rate", lambda run: run.learning_rate, "{:g}".format, "different"),
    _Column("seed", lambda run: run.seed, str, "different"),
    _Column("precision", lambda run: run.precision, str, "different"),
    _Column("bytes trained", lambda run: run.bytes_trained, byte_count),
    _Column("training FLOPs", lambda run: run.training_flops, short_count),
    _Column("time", lambda run: run.seconds, duration),
    _Column("bytes/s", lambda run: run.bytes_per_second, "{:,.0f}".format),
    _Column("peak memory", lambda run: run.peak_memory_bytes, byte_count, "known"),
    _Column("device", lambda run: run.device, str, "different"),
    _Column("stateful", lambda run: run.stateful and run.stateful.bits_per_byte, "{:.4f}".format, "known"),
    _Column("bits/byte", lambda run: run.validation and run.validation.bits_per_byte, "{:.4f}".format),
    _Column("state", lambda run: run.state, str),
)
# Attributes of a run that CSV and JSON have under the same names.
_RECORDED = (
    *("state", "parameters", "inference_flops_per_byte", "training_flops_per_byte", "context_length"),
    *("learning_rate", "seed", "precision", "step", "max_steps", "bytes_trained", "training_flops"),
    *("seconds", "bytes_per_second", "peak_memory_bytes", "device"),
)


def run_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """One table for each comparison, all with the same columns."""
    runs = [run for comparison in comparisons for run in comparison.runs]
    columns = [column for column in _COLUMNS if column.is_shown(runs)]
    tables = []
    for comparison in comparisons:
        rows = []
        for label, name, run in zip(comparison.labels, comparison.names, comparison.runs, strict=True):
            values = [column.value(run) for column in columns]
            cells = [_UNKNOWN if v is None else c.text(v) for c, v in zip(columns, values, strict=True)]
            rows.append([label, *cells, name])
        title = f"Measured on {comparison.measured_on}" if comparison.measured_on else "Not measured yet"
        tables.append(Table(title, ["model", *(column.title for column in columns), "run"], rows))
    return tables


def literature_tables() -> list[Table]:
    """The paper's tables 2 and 3."""
    tables = []
    for title, published, digits, remarks in (
        (literature.TITLE_2, literature.TABLE_2, 3, literature.REMARKS_2),
        (literature.TITLE_3, literature.TABLE_3, 1, literature.REMARKS_3),
    ):
        rows = []
        for row in published:
            trained = _UNKNOWN if row.bytes_trained is None else f"{short_count(row.bytes_trained)}B"
            figures = [_UNKNOWN if value is None else f"{value:.{digits}f}" for value in row.figures.values()]
            rows.append([row.model, row.context, trained, *figures])
        header = ["model", "context", "bytes trained", *published[0].figures]
        tables.append(Table(title, header, rows, remarks=remarks))
    return tables


def to_text(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """For a terminal."""
    blocks = []
    for table in tables:
        widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
        aligns = [str.ljust if title in table.words else str.rjust for title in table.header]
        lines = []
        for row in (table.header, *table.rows):
            cells = [align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        blocks.append("\n".join([table.title, *lines, *table.remarks]))
    return "\n\n".join([*blocks, *notes])


def to_markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """GitHub's Markdown."""
    blocks = []
    for table in tables:
        rule = ["---" if title in table.words else "---:" for title in table.header]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (table.header, rule, *table.rows)]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        blocks += [f"**{table.title}**", "\n".join(lines), *table.remarks]
    return "\n\n".join([*blocks, *notes])


def measured_records(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One record for each run, in plain units; ``comparison`` numbers the tables from 1."""
    records = []
    for number, comparison in enumerate(comparisons, 1):
        for label, name, run in zip(comparison.labels, comparison.names, comparison.runs, strict=True):
            figure, stateful = run.validation, run.stateful
            protocol = figure and ", ".join(f"{key} {value}" for key, value in figure.protocol.items())
            record = {"source": "measured", "comparison": number, "model": label, "run": name}
            record |= {"directory": str(run.directory)} | {name: getattr(run, name) for name in _RECORDED}
            record |= {"data": figure and figure.data_fingerprint, "protocol": protocol}
            record["bits_per_byte"] = figure and figure.bits_per_byte
            record["stateful_bits_per_byte"] = stateful and stateful.bits_per_byte
            records.append(record)
    return records


def published_records() -> list[dict[str, Any]]:
    """One record for each published figure, under the names that measured ones have."""
    records = []
    for table, rows, data, figure in (
        (2, literature.TABLE_2, "{} test", "bits_per_byte"),
        (3, literature.TABLE_3, "PG19 {}", "word_perplexity"),
    ):
        for row in rows:
            record: dict[str, Any] = {"source": f"published: arXiv 2401.13660, table {table}"}
            record |= {"model": row.model, "context_length": row.context, "bytes_trained": row.bytes_trained}
            known = {column: value for column, value in row.figures.items() if value is not None}
            records += [record | {"data": data.format(name), figure: value} for name, value in known.items()]
    return records


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """One line for each record."""
    text = io.StringIO()
    columns = dict.fromkeys(key for record in records for key in record)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_json(records: Sequence[dict[str, Any]], notes: Sequence[str]) -> str:
    """One object: ``records`` and ``notes``."""
    return valid_json({"records": records, "notes": notes}, indent=2) + "\n"
