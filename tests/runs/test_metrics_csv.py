"""metrics.csv as it is read."""

from pathlib import Path

import pytest

from mambabyte.errors import UserError
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"step,bytes,seconds,bits_per_byte\nsix,512,1.0,3.0\n", "step is 'six'"),
        (b"step,bytes,seconds,bits_per_byte\n2,512,,3.0\n", "a row has no seconds"),
        (b"step,bytes,seconds\n2,512,1.0\n", "a row has no bits_per_byte"),
        (b"step,bytes,seconds,bits_per_byte\n2,512,1.0,3.0,4\n", "a cell too many"),
        (b"step,loss\n", "there is no column 'loss'"),
        (b"step,bytes\n2,\xff\n", "can't decode"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_metrics(path)
    said = str(refusal.value)
    assert said.startswith(f"'{path}' is damaged") and reason in said
    assert said.endswith("move it away to go on without its rows")


def test_a_folder_in_its_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="move it away"):
        read_metrics(tmp_path)
