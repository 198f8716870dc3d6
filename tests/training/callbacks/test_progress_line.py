"""The line that shows how training is going."""

import io
import sys

import pytest

from mambabyte.runs.metrics_csv import COLUMNS
from mambabyte.training.callbacks.metrics import ProgressLine


def row(step: int, validation: float | None = None) -> dict:
    values = (step, step * 100, step / 2, 8 / step, validation, 1e-3, 1.0, 200.0, 0.38, 1024)
    return {**dict.fromkeys(COLUMNS), **dict(zip(COLUMNS, values, strict=False))}


def test_a_line_every_ten_seconds_without_a_terminal(monkeypatch, capsys) -> None:
    now = 100.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
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


def test_until_the_clock_has_decided_the_last_step_the_time_left_is_the_clocks(capsys) -> None:
    line = ProgressLine(None, 100, 0, training_seconds=7.0)
    line.begin()
    line.show(row(4), urgent=True)  # after two seconds
    line.max_steps = 10
    line.show(row(10), final=True)
    shown = capsys.readouterr().err.splitlines()
    assert [text.split(" | ")[0] for text in shown] == ["step 0", "step 4", "step 10/10"]
    assert shown[1].endswith("| 400 B | eta 5 s")
    assert shown[2].endswith("| 1.0/1.0 kB | eta 0 s")


def test_of_a_task_it_shows_the_share_of_right_answers_and_says_what_the_bits_are_of(capsys) -> None:
    line = ProgressLine(10, 100, 0, of_task=True)
    line.show({**row(4, 3.5), "validation_accuracy": 0.0}, urgent=True)
    line.show(row(10), final=True)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("step 4/10 | 2.000 bits per answer | 0.0 % right | lr")
    assert last.startswith("step 10/10 | 0.800 bits per answer | 0.0 % right | lr")


@pytest.mark.parametrize("first_step", [0, 9])
def test_a_run_of_one_row_shows_it(first_step: int, capsys) -> None:
    ProgressLine(10, 100, first_step).show(row(10), final=True)
    assert capsys.readouterr().err.startswith("step 10/10 | ")


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What stderr is from now on."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_on_a_terminal_the_line_is_rewritten(monkeypatch) -> None:
    terminal = a_terminal(monkeypatch)
    now = 100.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    line = ProgressLine(10, 100, 0)
    line.show(row(2), final=False)
    now = 101.0
    line.show(row(4), final=False)
    line.show(row(10), final=True)
    written = terminal.getvalue()
    assert [text.split(" | ")[0] for text in written.split("\r") if text.strip()] == [
        "step 2/10",
        "step 4/10",
        "step 10/10",
    ]
    assert written.count("\n") == 1 and written.endswith("\n")


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (
            150,
            "step 4/10 | 2.000 bpb | 3.500 validation bpb | lr 1.0e-03 | gradient 1.00 | 200 B/s | "
            "mfu 38.0 % | 0.4/1.0 kB | eta 0 s",
        ),
        (80, "step 4/10 | 2.000 bpb | 3.500 validation bpb | lr 1.0e-03 | 200 B/s | eta 0 s"),
        (60, "step 4/10 | 2.000 bpb | 3.500 validation bpb | eta 0 s"),
        (40, "step 4/10 | 2.000 bpb | eta 0 s"),
        (20, "step 4/10 | 2.000"),
    ],
)
def test_the_line_fits_the_terminal(columns: int, shown: str, monkeypatch) -> None:
    terminal = a_terminal(monkeypatch)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda stream: (columns - 1, 23))
    monkeypatch.setattr("tqdm.std.time", lambda: 100.0)
    line = ProgressLine(10, 100, 0)
    line.begin()
    line.show(row(4, 3.5), final=True)
    written = terminal.getvalue().split("\r")
    assert all(len(text.strip("\n")) < columns for text in written)
    first, last = (text.rstrip() for text in written if text.strip())
    assert "step 0/10 | waiting for the first step".startswith(first)
    assert last == shown


def test_it_says_something_at_once_and_at_the_first_step(monkeypatch, capsys) -> None:
    now = 100.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    line = ProgressLine(10, 100, 0)
    line.begin()
    assert capsys.readouterr().err == "step 0/10 | waiting for the first step\n"
    now = 101.0
    line.show(row(1), urgent=True)
    line.show(row(2))
    assert [text.split(" | ")[0] for text in capsys.readouterr().err.splitlines()] == ["step 1/10"]
    line.show(row(10), final=True)


def test_an_unknown_utilization_is_left_out(capsys) -> None:
    ProgressLine(10, 100, 0).show({**row(1), "model_flops_utilization": None}, final=True)
    assert "mfu" not in capsys.readouterr().err
