"""What a run writes for people: the progress line, metrics.csv, the curve, the report."""

from pathlib import Path

import numpy as np
import pytest

from mambabyte.runs.loss_curve import plot_loss_curve, smooth
from mambabyte.runs.metrics_csv import COLUMNS, read_metrics
from mambabyte.runs.summary import report
from mambabyte.training.callbacks import progress
from mambabyte.training.callbacks.progress import ProgressLine, byte_count, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (200, "3 m 20 s"),
        (3600 * 5 + 730, "5 h 12 m"),
        (86400 * 2 + 3600 * 3, "2 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_byte_counts() -> None:
    assert byte_count(999) == "999 B"
    assert byte_count(14_200) == "14.2 kB"
    assert byte_count(1_200_000, of=7_400_000) == "1.2/7.4 MB"
    assert byte_count(41e9) == "41.0 GB"


def row(step: int, validation: float | None = None) -> dict:
    values = (step, step * 100, step / 2, 8 / step, validation, 1e-3, 1.0, 200.0, 0.38, 1024)
    return {**dict.fromkeys(COLUMNS), **dict(zip(COLUMNS, values, strict=False))}


def test_a_line_every_ten_seconds_without_a_terminal(monkeypatch, capsys) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    line = ProgressLine(max_steps=10, bytes_per_step=100, first_step=0)
    line.show(row(1), final=False)
    now = 104.0
    line.show(row(2, 3.5), final=False)
    now = 112.0
    line.show(row(4), final=False)
    line.show(row(10), final=True)
    shown = capsys.readouterr().err.splitlines()
    assert [text.split(" | ")[0] for text in shown] == ["step 1/10", "step 4/10", "step 10/10"]
    assert shown[1] == (
        "step 4/10 | 2.000 bpb | 3.500 validation bpb | lr 1.0e-03 | gradient 1.00 | 200 B/s | mfu 38.0 % | "
        "0.4/1.0 kB | eta 18 s"
    )


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    others = "," * (len(COLUMNS) - 10)
    path.write_text(f"{','.join(COLUMNS)}\n2,200,1.0,4.0,,0.001,1.0,200.0,0.38,1024{others}\n4,400,2.0,2.0,3")
    assert read_metrics(path) == [{**row(2), "step": 2}]
    assert read_metrics(tmp_path / "none.csv") == []


def test_smoothing_is_a_mean_of_what_was_seen() -> None:
    assert smooth(np.full(5, 3.0)) == pytest.approx(np.full(5, 3.0))
    # 20 values: a weight of a half
    assert smooth(np.array([1.0, 2.0] * 10))[1] == pytest.approx((0.5 * 1 + 2) / 1.5)


@pytest.mark.parametrize(
    "rows", [[], [row(1)], [row(step, 2.0 if step % 2 else None) for step in range(1, 9)]]
)
def test_the_curve_is_drawn_from_any_number_of_rows(rows: list, tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    plot_loss_curve(rows, {"gzip -9": 2.1, "xz -9e": 1.9, "zstd -19": 2.0}, 1.5, "a run", path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_report_shows_no_control_characters() -> None:
    protocol = {"name": "disjoint", "context_length": 8}
    validation = {"bits_per_byte": 2.0, "bytes": 9, "documents": 1, "protocol": protocol}
    summary = {
        "validation": validation,
        "validation_stateful": {**validation, "protocol": {"name": "stateful", "context_length": 8}},
        "compressors": {"gzip -9": 3.0},
        "sample": "a\x1b[2J\nb",
        "run_dir": "runs/x",
    }
    text = report({**summary, "parameters": 5, "step": 2, "loss_curve": "runs/x/loss_curve.png"})
    assert "\x1b" not in text
    assert "  a\ufffd[2J\n  b\n" in text
