"""mambabyte report on a run that was trained."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from mambabyte.cli.main import main
from mambabyte.runs.metrics_csv import read_metrics

IMAGES = ["bits_per_byte_by_bytes.png", "bits_per_byte_by_flops.png", "bits_per_byte_by_time.png"]


def test_a_trained_run_is_reported_in_every_form(finished: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "report"
    assert main(["report", str(finished), "--json", "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    (record,) = json.loads(printed)["records"]
    summary = json.loads((finished / "summary.json").read_text())
    assert record["bits_per_byte"] == summary["validation"]["bits_per_byte"]
    assert record["stateful_bits_per_byte"] == summary["validation_stateful"]["bits_per_byte"]
    assert record["parameters"] == summary["parameters"]
    assert record["bytes_trained"] == summary["bytes_seen"]
    rows = read_metrics(finished / "metrics.csv")
    assert record["peak_memory_bytes"] == max(row["peak_memory_bytes"] or 0 for row in rows) or None
    assert sorted(path.name for path in output.iterdir()) == sorted(
        [*IMAGES, "report.csv", "report.html", "report.json", "report.md"]
    )
    assert (output / "report.json").read_text() == printed
    page = (output / "report.html").read_text()
    for name in IMAGES:
        image = (output / name).read_bytes()
        assert image.startswith(b"\x89PNG")
        assert base64.b64encode(image).decode() in page


def test_a_damaged_run_is_left_out_and_said(finished: Path, tmp_path: Path, capsys) -> None:
    for name in ("whole", "damaged"):
        shutil.copytree(finished, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "damaged" / "summary.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("complete") == 1
    said = " ".join(printed.out.split())
    assert f"A run is left out: '{tmp_path}/damaged/summary.json' is damaged" in said
    assert main(["report", str(tmp_path), "--csv"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2, "a CSV holds nothing but its lines"
    assert "A run is left out" in printed.err
    assert main(["report", str(tmp_path / "damaged")]) == 1
    assert "none of these runs can be read" in capsys.readouterr().err


def test_a_run_of_which_nothing_is_recorded_has_no_figures(finished: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "begun").mkdir()
    shutil.copy(finished / "config.yaml", tmp_path / "begun")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    assert "Nothing is recorded yet of begun." in capsys.readouterr().out
    assert not list((tmp_path / "report").glob("*.png"))
    assert "<img" not in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("columns", [80, 40])
def test_the_tables_fit_the_terminal(columns: int, finished: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["report", str(finished), "--literature"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_literature_and_markdown(finished: Path, capsys) -> None:
    assert main(["report", str(finished), "--markdown", "--literature"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("**Published, not measured here") == 2
    assert main(["report", str(finished)]) == 0
    assert "Published" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: RUN; see mambabyte report --help"),
        (["nowhere"], "there is no run at 'nowhere'"),
        (["x", "--csv", "--json"], "not allowed with argument"),
    ],
)
def test_mistakes(arguments, sentence, capsys) -> None:
    assert main(["report", *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(finished: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert main(["report", str(finished), "-o", str(tmp_path / "file" / "report")]) == 1
    assert "choose another --out" in capsys.readouterr().err
