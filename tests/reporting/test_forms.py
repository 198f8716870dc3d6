"""Tables, figures and the page say what the runs recorded, each in its own form."""

from __future__ import annotations

import base64
import csv
import io
import json
import re

import pytest

from mambabyte.models import TransformerConfig
from mambabyte.reporting import compare, tables
from mambabyte.reporting.figures import FIGURES, draw
from mambabyte.reporting.html import to_html
from mambabyte.runs.run import read_run


@pytest.fixture
def comparisons(write_run):
    transformer = TransformerConfig(d_model=16, n_layer=1, n_head=2)
    runs = [
        write_run("lstm_0", 2.5),
        write_run("lstm_1", 2.75, seed=1),
        write_run("a|b", 2.25, model=transformer),
        write_run("part", None, model=transformer, steps=4),
    ]
    return compare([read_run(run) for run in runs])[0]


def cells(table: tables.Table, title: str) -> list[str]:
    return [row[table.header.index(title)] for row in table.rows]


def test_the_table_shows_what_differs(comparisons) -> None:
    (table,) = tables.run_tables(comparisons)
    assert cells(table, "run") == ["a|b", "lstm_0", "lstm_1", "part"]
    assert cells(table, "bits/byte") == ["2.2500", "2.5000", "2.7500", "-"]
    assert cells(table, "stateful") == ["2.0000", "2.2500", "2.5000", "-"]
    assert cells(table, "bytes trained") == ["2.6 kB", "2.6 kB", "2.6 kB", "1.0 kB"]
    assert cells(table, "peak memory") == ["10.0 kB", "10.0 kB", "10.0 kB", "4.0 kB"]
    assert cells(table, "seed") == ["0", "0", "1", "0"]
    assert cells(table, "state")[-1] == "not complete: step 4 of 10"
    assert "learning rate" not in table.header, "all have the same"
    assert "context" not in table.header


def test_text_is_aligned_and_markdown_keeps_its_columns(comparisons) -> None:
    shown = tables.run_tables(comparisons)
    lines = tables.to_text(shown, ["A note."]).splitlines()
    ends = {line.index(number) for line in lines for number in ("2.2500  ", "2.5000  ") if number in line}
    assert lines[1].split()[:2] == ["model", "parameters"]
    assert lines[-1] == "A note."
    assert len(ends) <= 2, "one place for each of the two columns that show them"
    rows = [line for line in tables.to_markdown(shown, []).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "a\\|b" in rows[2]


def test_csv_and_json_hold_plain_values(comparisons) -> None:
    records = tables.measured_records(comparisons)
    assert json.loads(tables.to_json(records, ["note"])) == {"records": records, "notes": ["note"]}
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(records))))
    assert [float(row["bits_per_byte"]) for row in rows[:3]] == [2.25, 2.5, 2.75]
    assert rows[3]["bits_per_byte"] == ""
    first = records[0]
    assert first["training_flops"] == 2560 * first["training_flops_per_byte"]
    assert first["protocol"] == "name disjoint, context_length 32, first_byte 8 bits, max_bytes None"
    assert {row["source"] for row in rows} == {"measured"}


def test_literature_is_marked_as_published(comparisons) -> None:
    bits, words = tables.literature_tables()
    assert all(table.title.startswith("Published, not measured here") for table in (bits, words))
    assert bits.rows[-1] == ["MambaByte-353M", "8,192", "30GB", "0.930", "0.908", "0.966", "0.663", "0.396"]
    assert words.rows[-1] == ["MambaByte-972M (bytes)", "8,192", "150GB", "39.6", "33.0"]
    assert words.rows[2][-2:] == ["-", "33.2"]
    published = tables.published_records()
    assert len(published) == 4 * 5 + 2 * 10 - 2
    rows = csv.DictReader(io.StringIO(tables.to_csv(tables.measured_records(comparisons) + published)))
    sources = [row["source"] for row in rows]
    assert sources[:4] == ["measured"] * 4
    assert all(source.startswith("published: arXiv 2401.13660, table ") for source in sources[4:])


def test_a_model_has_one_colour_and_a_figure_its_own_axis(comparisons) -> None:
    run = comparisons[0].runs[0]
    ends = []
    for figure in FIGURES:
        (axes,) = draw(figure, comparisons).axes
        lines = [line for line in axes.lines if line.get_linestyle() == "-"]
        stars = [line for line in axes.lines if line.get_marker() == "*"]
        assert len(lines) == 4
        assert len(stars) == 3, "a run that is not measured has none"
        colors = [line.get_color() for line in lines]
        assert colors[0] == colors[3] != colors[1] == colors[2]
        entries = [text.get_text() for text in axes.get_legend().get_texts()]
        assert entries == [*dict.fromkeys(comparisons[0].labels), "at the end, on all bytes"]
        ends.append((stars[0].get_xdata()[0], axes.get_xlabel()))
    assert ends[0] == (2.56, "bytes trained (kB)")
    flops = 2560 * run.training_flops_per_byte
    assert ends[1] == (pytest.approx(flops / 1e6), "training FLOPs ($10^{6}$)")
    assert ends[2] == (5.0, "time spent on training steps (seconds)")


def test_each_comparison_has_a_panel_even_an_empty_one(write_run) -> None:
    runs = [write_run("a"), write_run("b", 2.0, data_fingerprint="other"), write_run("c", None, steps=0)]
    text = (runs[2] / "config.yaml").read_text()
    (runs[2] / "config.yaml").write_text(text.replace("path: corpus", "path: elsewhere"))
    comparisons, _ = compare([read_run(run) for run in runs])
    canvas = draw(FIGURES[0], comparisons)
    assert [bool(axes.lines) for axes in canvas.axes] == [True, True, False]
    assert [text.get_text() for text in canvas.axes[2].texts] == ["nothing recorded yet"]


def test_the_page_needs_no_other_file(comparisons) -> None:
    page = to_html(tables.run_tables(comparisons), ["1 < 2"], {"Bits by bytes": b"png"})
    assert "1 &lt; 2" in page
    assert base64.b64encode(b"png").decode() in page
    assert re.findall(r"(?:src|href)=.{6}", page) == ["src='data:"]
    assert "url(" not in page
    assert page.count("<tr>") == 5
