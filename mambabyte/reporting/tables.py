"""The runs and the published figures as tables: plain text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

from mambabyte.reporting import literature
from mambabyte.reporting.comparison import Comparison
from mambabyte.runs.run import Run
from mambabyte.runtime.units import byte_count, duration, short_count
from mambabyte.runtime.valid_json import valid_json

_UNKNOWN = "-"
_GAP = "  "  # between columns of text
_WORDS_WIDTH = 30  # of the longest line of a cell in text


@dataclass(frozen=True)
class Table:
    """Cells as text; the columns titled in ``words`` hold words, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    words: tuple[str, ...] = ("run", "model", "precision", "device", "state")
    remarks: Sequence[str] = ()


class _Column(NamedTuple):
    """A property of runs, by which a table's runs may differ."""

    title: str
    value: Callable[[Run], Any]
    text: Callable[[Any], str]

    def cell(self, run: Run) -> str:
        value = self.value(run)
        return _UNKNOWN if value is None else self.text(value)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


_BITS_PER_BYTE = _Column(
    "bits/byte", lambda run: run.validation and run.validation.bits_per_byte, "{:.4f}".format
)
_OF_TASKS = (  # what is measured on a task, whose bits are those of the answers alone
    _Column("accuracy", lambda run: run.validation and run.validation.accuracy, _percent),
    _Column("all right", lambda run: run.validation and run.validation.sequence_accuracy, _percent),
    _BITS_PER_BYTE._replace(title="bits/answer"),
)
# Columns beside run, what is measured, and model.
_COLUMNS = (
    _Column("stateful", lambda run: run.stateful and run.stateful.bits_per_byte, "{:.4f}".format),
    _Column("learning rate", lambda run: run.learning_rate, "{:g}".format),
    _Column("seed", lambda run: run.seed, str),
    _Column("context", lambda run: run.context_length, "{:,}".format),
    _Column("precision", lambda run: run.precision, str),
    _Column("parameters", lambda run: run.parameters, "{:,}".format),
    _Column("FLOPs/byte", lambda run: run.inference_flops_per_byte, short_count),
    _Column("in training", lambda run: run.training_flops_per_byte, short_count),
    _Column("bytes trained", lambda run: run.bytes_trained, byte_count),
    _Column("training FLOPs", lambda run: run.training_flops, short_count),
    _Column("time", lambda run: run.seconds, duration),
    _Column("bytes/s", lambda run: run.bytes_per_second, "{:,.0f}".format),
    _Column("peak memory", lambda run: run.peak_memory_bytes, byte_count),
    _Column("device", lambda run: run.device, str),
    _Column("state", lambda run: run.state, str),
)
# Attributes of a run that CSV and JSON have under the same names.
_RECORDED = (
    *("state", "parameters", "inference_flops_per_byte", "training_flops_per_byte", "context_length"),
    *("learning_rate", "seed", "precision", "step", "max_steps", "bytes_trained", "training_flops"),
    *("seconds", "bytes_per_second", "peak_memory_bytes", "device"),
)


def run_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """A table for each comparison: the columns in which its runs differ, and as a remark what they share."""
    return [_run_table(comparison) for comparison in comparisons]


def _run_table(comparison: Comparison) -> Table:
    columns = {"model": comparison.models}
    columns |= {column.title: [column.cell(run) for run in comparison.runs] for column in _COLUMNS}
    different = {title: cells for title, cells in columns.items() if len(set(cells)) > 1}
    shared = {title: cells[0] for title, cells in columns.items() if title not in different}
    alike = [f"{title} {cell}" for title, cell in shared.items() if cell != _UNKNOWN]
    measured = _OF_TASKS if comparison.of_task else (_BITS_PER_BYTE,)
    figures = [[column.cell(run) for run in comparison.runs] for column in measured]
    rows = zip(comparison.names, *figures, *different.values(), strict=True)
    header = ["run", *(column.title for column in measured), *different]
    title = f"Measured on {comparison.measured_on}" if comparison.measured_on else "Not measured yet"
    whose = "The same in all runs" if len(comparison.runs) > 1 else "This run"
    remarks = [f"{whose}: {', '.join(alike)}."] if alike else []
    if comparison.of_task:
        remarks.append(
            "Accuracy is the share of answers that are right, all right that of the sequences whose answers "
            "all are; bits/answer covers the answers and no other byte."
        )
    return Table(title, header, [list(row) for row in rows], remarks=remarks)


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


def to_text(tables: Sequence[Table], notes: Sequence[str], width: int = 80) -> str:
    """For a terminal of ``width`` columns: what does not fit stands below, beside the first column again."""
    blocks = []
    for table in tables:
        lines = _wrapped(table.title, width)
        narrow = min(_WORDS_WIDTH, (width - len(_GAP)) // 2)  # so that two columns fit
        for number, titles in enumerate(_fitting(table, width, narrow)):
            lines += [""] * (number > 0) + _aligned(table, titles, narrow)
        for remark in table.remarks:
            lines += _wrapped(remark, width)
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, *("\n".join(_wrapped(note, width)) for note in notes)])


class _CellWrapper(textwrap.TextWrapper):
    """Breaks lines after a comma or a slash too, as they stand in the names of a sweep's runs."""

    wordsep_simple_re = re.compile(r"(\s+|(?<=[,/]))")


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) or [""]


def _cells(table: Table, title: str, narrow: int) -> list[list[str]]:
    """The lines of each cell of a column, its title first; words are wrapped at ``narrow`` columns."""
    place, wrapper = table.header.index(title), _CellWrapper(narrow, break_on_hyphens=False)
    return [wrapper.wrap(row[place]) or [""] for row in (table.header, *table.rows)]


def _width(table: Table, title: str, narrow: int) -> int:
    return max(len(line) for cell in _cells(table, title, narrow) for line in cell)


def _fitting(table: Table, width: int, narrow: int) -> list[list[str]]:
    """The columns' titles in groups that are at most ``width`` wide, each with the first column."""
    first, *others = table.header
    groups, free = [[first]], width - _width(table, first, narrow)
    for title in others:
        needed = len(_GAP) + _width(table, title, narrow)
        if needed > free and len(groups[-1]) > 1:
            groups.append([first])
            free = width - _width(table, first, narrow)
        groups[-1].append(title)
        free -= needed
    return groups


def _aligned(table: Table, titles: Sequence[str], narrow: int) -> list[str]:
    aligns = [str.ljust if title in table.words else str.rjust for title in titles]
    widths = [_width(table, title, narrow) for title in titles]
    lines = []
    for row in zip(*(_cells(table, title, narrow) for title in titles), strict=True):
        for parts in zip_longest(*row, fillvalue=""):
            cells = [align(part, size) for align, part, size in zip(aligns, parts, widths, strict=True)]
            lines.append(_GAP.join(cells).rstrip())
    return lines


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
        for model, name, run in zip(comparison.models, comparison.names, comparison.runs, strict=True):
            figure, stateful = run.validation, run.stateful
            protocol = figure and ", ".join(f"{key} {value}" for key, value in figure.protocol.items())
            record = {"source": "measured", "comparison": number, "model": model, "run": name}
            record |= {"directory": os.path.relpath(run.directory)} | {
                name: getattr(run, name) for name in _RECORDED
            }
            record |= {"data": figure and figure.data_fingerprint, "protocol": protocol}
            record["bits_per_byte"] = figure and figure.bits_per_byte
            record["stateful_bits_per_byte"] = stateful and stateful.bits_per_byte
            if comparison.of_task:
                record["accuracy"] = figure and figure.accuracy
                record["sequence_accuracy"] = figure and figure.sequence_accuracy
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
