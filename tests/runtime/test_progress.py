"""What is shown of work that takes longer than a moment, and when."""

import io
import sys
from collections.abc import Callable

import pytest

from mambabyte.runtime.progress import Progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """wait(seconds) moves tqdm's clock."""
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_a_line_every_ten_seconds_without_a_terminal(wait, capsys) -> None:
    progress = Progress("preparing train data", 100_000_000, 10_000_000)
    wait(1)
    progress.show(15_000_000, 1)
    assert capsys.readouterr().err == "", "nothing in the first two seconds"
    wait(2)
    progress.show(40_000_000, 2000)
    (line,) = capsys.readouterr().err.splitlines()
    for part in (
        "preparing train data: ",
        "40%",
        "40.0M/100M",
        "[00:03<00:06",
        "10.0MB/s",
        "2,000 documents",
    ):
        assert part in line
    wait(9)
    progress.show(60_000_000, 3000)
    assert capsys.readouterr().err == ""
    wait(1)
    progress.show(70_000_000, 4000)
    assert "70.0M/100M" in capsys.readouterr().err
    progress.close()
    assert capsys.readouterr().err.count("\n") == 1, "where it ended"


def test_the_end_is_one_line_without_a_terminal(wait, capsys) -> None:
    progress = Progress("disjoint", 1000)
    wait(5)
    progress.show(500)
    wait(20)
    progress.show(1000)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert ["50%" in lines[0], "100%" in lines[1], len(lines)] == [True, True, 2]


def test_without_a_total_there_is_no_share(wait, capsys) -> None:
    progress = Progress("inspecting", None)
    wait(4)
    progress.show(40_000_000, 1)
    line = capsys.readouterr().err
    assert "40.0MB [00:04, 10.0MB/s, 1 document]" in line
    assert "%" not in line


def test_work_beyond_an_estimated_total_goes_on(wait, capsys) -> None:
    progress = Progress("preparing", 10_000_000)
    wait(4)
    progress.show(12_000_000, 3)
    assert "12.0MB" in capsys.readouterr().err


def test_steps_are_counted_whole_and_not_as_bytes(wait, capsys) -> None:
    show = progress_bar("training", unit=" steps")
    show(1, 3000)
    wait(4)
    show(2001, 3000)
    assert "2001/3000 [00:04" in (line := capsys.readouterr().err)
    assert "500.00 steps/s" in line


def test_short_work_shows_nothing(wait, capsys) -> None:
    show = progress_bar("disjoint")
    show(10, 20)
    wait(1.5)
    show(20, 20)
    assert capsys.readouterr().err == ""


def test_a_terminal_line_is_rewritten(wait, monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show = progress_bar("disjoint")
    show(100, 1000)
    wait(5)
    show(600, 1000)
    wait(1)
    show(1000, 1000)
    *drawn, end = terminal.getvalue().split("\r")
    assert end.endswith("\n")
    assert terminal.getvalue().count("\n") == 1
    assert any("disjoint:  60%" in each and "100B/s" in each for each in drawn), "from 100 bytes on"
    assert "100%" in end


def test_a_bar_that_an_error_left_behind_moves_no_other(wait, monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    left_behind = Progress("interrupted", 1000)
    show = progress_bar("disjoint")
    for done in (100, 1000):
        wait(5)
        show(done, 1000)
    assert terminal.getvalue().count("\n") == 1 and "\x1b" not in terminal.getvalue()
    assert left_behind.n == 0
