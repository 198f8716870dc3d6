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
    assert table.header[:2] == ["run", "bits/byte"]
    assert cells(table, "run") == ["a|b", "lstm_0", "lstm_1", "part"]
    assert cells(table, "bits/byte") == ["2.2500", "2.5000", "2.7500", "-"]
    assert cells(table, "stateful") == ["2.0000", "2.2500", "2.5000", "-"]
    assert cells(table, "bytes trained") == ["2.6 kB", "2.6 kB", "2.6 kB", "1.0 kB"]
    assert cells(table, "peak memory") == ["10.0 kB", "10.0 kB", "10.0 kB", "4.0 kB"]
    assert cells(table, "seed") == ["0", "0", "1", "0"]
    assert cells(table, "state")[-1] == "not complete: step 4 of 10"
    for shared in ("learning rate", "context", "precision"):
        assert shared not in table.header, "all have the same"
    (remark,) = table.remarks
    assert remark == "The same in all runs: learning rate 0.001, context 32, precision fp32."


def test_of_one_run_everything_but_the_figure_stands_beneath(write_run) -> None:
    (table,) = tables.run_tables(compare([read_run(write_run("alone"))])[0])
    assert table.header == ["run", "bits/byte"]
    assert table.rows == [["alone", "2.5000"]]
    assert table.remarks[0].startswith("This run: model LSTM ")
    assert "state complete" in table.remarks[0]


def test_text_is_aligned_and_markdown_keeps_its_columns(comparisons) -> None:
    shown = tables.run_tables(comparisons)
    lines = tables.to_text(shown, ["A note."], width=300).splitlines()
    ends = {line.index(number) for line in lines for number in ("2.2500  ", "2.5000  ") if number in line}
    assert lines[1].split()[:2] == ["run", "bits/byte"]
    assert lines[-1] == "A note."
    assert len(ends) <= 2, "one place for each of the two columns that show them"
    rows = [line for line in tables.to_markdown(shown, []).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "a\\|b" in rows[2]


def test_text_fits_the_terminal(write_run) -> None:
    long = "optimizer.learning_rate=0.002,model.d_model=384,trainer.global_batch_bytes=65536"
    runs = [
        write_run(long, seed=1, learning_rate=2e-3),
        write_run("short", 2.25),
        write_run("part", None, steps=4),
    ]
    comparisons, _ = compare([read_run(run) for run in runs])
    shown = tables.run_tables(comparisons) + tables.literature_tables()
    note = "A note of many words. " * 20
    for width in (64, 80, 132):
        lines = tables.to_text(shown, [note], width).splitlines()
        assert max(map(len, lines)) <= width
    (table,) = tables.run_tables(comparisons)
    text = tables.to_text([table], [])
    assert {word for title in table.header for word in title.split()} <= {*text.split()}
    for row in table.rows:
        assert {word for cell in row[1:] for word in cell.split()} <= {*text.split()}
    assert long in "".join(line[:30].strip() for line in text.splitlines())
    parts = text.split("\n\n")
    assert len(parts) > 1
    assert all("short" in part for part in parts), "each part says again which run it is about"


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


def test_a_label_has_one_colour_and_a_figure_its_own_axis(comparisons) -> None:
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
        during, end = "validation during training, a sample", "validation at the end"
        assert entries == [*dict.fromkeys(comparisons[0].labels), during, end]
        ends.append((stars[0].get_xdata()[0], axes.get_xlabel()))
    assert ends[0] == (2.56, "bytes trained (kB)")
    flops = 2560 * run.training_flops_per_byte
    assert ends[1] == (pytest.approx(flops / 1e6), "training FLOPs ($10^{6}$)")
    assert ends[2] == (5.0, "time spent on training steps (seconds)")


def of_other_data(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("path: corpus", "path: elsewhere"))
    return run


def test_learning_rates_have_their_own_colours(write_run) -> None:
    runs = [write_run("low", learning_rate=1e-4), write_run("high", 2.0, learning_rate=1e-2)]
    comparisons, _ = compare([read_run(run) for run in runs])
    (axes,) = draw(FIGURES[0], comparisons).axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert len({line.get_color() for line in lines}) == 2


def test_training_is_drawn_where_nothing_was_validated(write_run) -> None:
    runs = [write_run("validated"), write_run("not", None, steps=6, validate_every=100, learning_rate=1e-2)]
    comparisons, _ = compare([read_run(run) for run in runs])
    (axes,) = draw(FIGURES[0], comparisons).axes
    by_style = {
        line.get_linestyle(): list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 1
    }
    assert by_style["-"] == [1.024, 2.048]
    assert by_style[":"] == pytest.approx([0.512, 1.024, 1.536])
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "training, where nothing was validated" in entries


def test_a_comparison_of_which_nothing_is_recorded_has_no_panel_but_a_sentence(write_run) -> None:
    runs = [write_run("a"), write_run("b", 2.0, data_fingerprint="other")]
    runs.append(of_other_data(write_run("empty", None, steps=0)))
    comparisons, notes = compare([read_run(run) for run in runs])
    assert [bool(axes.lines) for axes in draw(FIGURES[0], comparisons).axes] == [True, True]
    assert "Nothing is recorded yet of empty." in notes
    assert draw(FIGURES[0], comparisons[2:]) is None


def test_a_name_with_dollars_is_no_formula(write_run) -> None:
    runs = [write_run("a$x_$b"), write_run("a$x^", seed=1)]
    canvas = draw(FIGURES[0], compare([read_run(run) for run in runs])[0])
    canvas.savefig(io.BytesIO(), format="png")  # raises where matplotlib takes the name for a formula


def test_the_page_needs_no_other_file(comparisons) -> None:
    page = to_html(tables.run_tables(comparisons), ["1 < 2"], {"Bits by bytes": b"png"})
    assert "1 &lt; 2" in page
    assert base64.b64encode(b"png").decode() in page
    assert re.findall(r"(?:src|href)=.{6}", page) == ["src='data:"]
    assert "url(" not in page
    assert page.count("<tr>") == 5
    assert page.count("Bits by bytes") == 1, "the figure itself shows its title"


def test_the_page_fits_a_phone(comparisons) -> None:
    page = to_html(tables.run_tables(comparisons), [], {"Bits by bytes": b"png"})
    assert "<meta name=viewport content='width=device-width,initial-scale=1'>" in page
    assert "max-width:100%" in page, "figures shrink"
    assert re.findall(r"(.{5})<table>", page) == ["<div>"]
    assert "div{overflow-x:auto}" in page, "tables scroll in their own box"
