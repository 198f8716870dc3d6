"""benchmarks/tournament.py given what it cannot use: a sentence, and nothing that was measured is lost."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mambabyte.errors import UserError


@pytest.fixture
def call(load, monkeypatch, tmp_path: Path):
    """call("--trials 0") is main() with these words and two folders, after a run that would cost hours."""
    tournament = load("tournament")
    monkeypatch.setattr(tournament, "run", lambda plan, options: pytest.fail("nothing may be run"))

    def call(words: str) -> None:
        given = f"tournament.py --books b --runs {tmp_path}/runs --out {tmp_path}/out {words} --models lstm"
        monkeypatch.setattr(sys, "argv", given.split())
        tournament.main()

    return call


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        *(("--trials", word) for word in ("0", "-1", "many")),
        *(("--processes", word) for word in ("0", "1.5")),
        *(("--trial-flops", word) for word in ("-1", "0", "nan", "inf")),
        *(("--seeds", word) for word in ("-1", "x")),
        *(("--final-flops", "0"), ("--final-seconds", "0"), ("--hours", "-1")),
    ],
)
def test_an_option_that_is_no_number_above_zero_is_refused(call, option: str, wrong: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        call(f"{option} {wrong}")
    assert end.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nonsense=1", "books, lstm: there is no setting nonsense; choose from"),
        ("--trial-flops 1", "books, lstm: budget.training_flops=1 is less than one step"),
    ],
)
def test_what_no_model_can_be_trained_with_is_refused_before_a_run(call, words: str, said: str) -> None:
    with pytest.raises(UserError) as fault:
        call(words)
    assert said in str(fault.value)


def test_a_result_outlives_a_command_that_is_refused(load, planned, tmp_path: Path, tiny: str) -> None:
    runs = load("tournament_runs")
    machine, job = runs.Machine(), runs.first_trials(planned(tiny, tmp_path), "books", "lstm")[0]
    machine._outcome = lambda job, command: "diverged"
    result = machine.finish(job)
    wrong = replace(job, plan=planned(tiny, tmp_path, "nonsense=1"))
    with pytest.raises(runs.Failed, match="holds a run of other settings"):
        machine.finish(wrong)
    assert machine.finish(job) == result
    other = replace(wrong, number=1)
    assert machine.finish(other)["outcome"].startswith("refused: ")
    assert machine.finish(replace(other, plan=job.plan))["outcome"] == "diverged", "no longer refused"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"command": "c"}'])
def test_a_result_that_is_none_is_named(load, planned, tmp_path: Path, tiny: str, text: str) -> None:
    runs = load("tournament_runs")
    job = runs.first_trials(planned(tiny, tmp_path), "books", "lstm")[0]
    job.folder.mkdir(parents=True)
    (job.folder / runs.RESULT).write_text(text)
    for read in (lambda: runs.Machine().finish(job), lambda: load("tournament").finished(tmp_path / "runs")):
        with pytest.raises(UserError, match=r"lstm/trial_00/result\.json is no result of a run: remove"):
            read()


def test_a_search_without_a_figure_says_why(load, planned, tmp_path: Path, tiny: str) -> None:
    runs = load("tournament_runs")
    machine, plan = runs.Machine(), planned(tiny, tmp_path, trial_flops=1.0)
    with pytest.raises(runs.Failed, match=r"none of its trials has a figure.*less than one step"):
        load("tournament_search").Search(plan, machine, "lstm").turn(0)


def test_a_page_without_results_is_not_written(load, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("the page of another folder")
    with pytest.raises(UserError, match=r"there is no result in .*tournament\.csv"):
        load("tournament").write_page(tmp_path, page)
    assert page.read_text() == "the page of another folder"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed\n1\n", "lacks the columns model"),
        ("model,seed\nlstm,1\nlstm,", "is cut off in its last line"),
        ("model,seed\nlstm,1\nlstm\n", "line 3: this is no whole row"),
        ("model,seed\nlstm,1,2\n", "line 2: this is no whole row"),
        ("model,seed\nlstm,first\n", "line 2: this is no whole row"),
    ],
)
def test_rows_that_are_not_whole_are_named(load, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "figures.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load("csv_rows").read_rows(path, words=("model",), columns=("model", "seed"))


ROWS = "cpu,books,lstm,trial,0,0,,,,,,,,,,,,{bits},,finished,m,c\n"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        *(
            (ROWS.format(bits=bits), "line 2: books, lstm, trial, 0, 0 is no")
            for bits in ("nan", "-1", "inf", "")
        ),
        (ROWS.format(bits=2).replace("lstm", "gpt"), "line 2: books, gpt, trial, 0, 0 is no result"),
        (ROWS.format(bits=2).replace("trial", "trail"), "is no result of a tournament"),
        (2 * ROWS.format(bits=2), "line 3: books, lstm, trial, 0, 0 is there twice"),
    ],
)
def test_results_that_no_tournament_writes_are_named(load, tmp_path: Path, rows: str, said: str) -> None:
    csvs = load("tournament_csv")
    (tmp_path / csvs.RESULTS).write_text(",".join(csvs.RESULT_COLUMNS) + "\n" + rows)
    with pytest.raises(UserError, match=said):
        csvs.read(tmp_path)


def test_a_copied_folder_among_the_runs_is_no_run(load, tmp_path: Path) -> None:
    folder = tmp_path / "books" / "lstm" / "trial_00.bak"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    assert load("tournament").finished(tmp_path) == []


@pytest.mark.parametrize("words", ["--contexts 0", "--contexts -5", "--max-bytes 0", "--processes 0"])
def test_lengths_that_are_none_are_refused(load, monkeypatch, words: str, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["long_context.py", *words.split()])
    with pytest.raises(SystemExit):
        load("long_context").main()
    assert "is no whole number above 0" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "tournament.py"
    (tmp_path / "file").write_text("")
    words = ["--corpora", "code", "--models", "lstm", "--out", str(tmp_path / "file" / "out")]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("tournament.py: ") and "file/out" in done.stderr
