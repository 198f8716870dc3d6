"""metrics.csv as it is read."""

from pathlib import Path

from mambabyte.runs.metrics_csv import COLUMNS, read_metrics


def row(step: int, validation: float | None = None) -> dict:
    values = (step, step * 100, step / 2, 8 / step, validation, 1e-3, 1.0, 200.0, 0.38, 1024)
    return {**dict.fromkeys(COLUMNS), **dict(zip(COLUMNS, values, strict=False))}


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    others = "," * (len(COLUMNS) - 10)
    path.write_text(f"{','.join(COLUMNS)}\n2,200,1.0,4.0,,0.001,1.0,200.0,0.38,1024{others}\n4,400,2.0,2.0,3")
    assert read_metrics(path) == [{**row(2), "step": 2}]
    assert read_metrics(tmp_path / "none.csv") == []
