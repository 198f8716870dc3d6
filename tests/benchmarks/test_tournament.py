"""benchmarks/tournament.py and long_context.py: what they plan, run, keep and write."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from mambabyte.commands import train
from mambabyte.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "benchmarks"


@pytest.mark.parametrize(("size_name", "ends"), [("cpu", (0, -1)), ("60m", (0,)), ("350m", (-1,))])
def test_every_model_can_be_trained_at_the_ends_of_the_ranges(size_name: str, ends, load) -> None:
    space = load("tournament_space")
    size = space.SIZES[size_name]
    counts = []
    for name, model in space.MODELS.items():
        for end in ends:
            given = (
                size.widths[end],
                size.depths[end],
                1e-3,
                size.batch_bytes[end],
                size.context_lengths[end],
            )
            if not model.missing:
                settings = TrainSettings.compose(*space.settings_of(model, size, space.Point(*given)))
                assert settings.context_length == size.context_lengths[end], name
                assert settings.trainer.global_batch_bytes == size.batch_bytes[end]
                counts.append(type(settings.model).__name__)
    assert len(set(counts)) == len(counts) // len(ends) >= 6


def test_a_job_is_a_whole_command_of_its_own(load, planned, tmp_path: Path) -> None:
    runs = load("tournament_runs")
    plan = planned("cpu", tmp_path, "data.workers=0")
    jobs = runs.first_trials(plan, "books", "mambabyte")
    assert len(jobs) == 1 and jobs[0].point == plan.size.centre
    words = " ".join(jobs[0].command)
    assert words.startswith(
        "mambabyte train experiment=compute_matched model=mambabyte budget.parameters=null "
    )
    assert f"data=hf data.path={tmp_path}/books data.windows=packed data.workers=0 seed=0 " in words
    assert "budget.training_flops=4e+11" in words and words.endswith("runs/books/mambabyte/trial_00")
    settings = TrainSettings.compose(*jobs[0].command[2:])
    assert settings.callbacks.validate_every == jobs[0].steps
    assert settings.optimizer.warmup_steps == jobs[0].steps // 10
    late = list(runs.finals(plan, "books", "lstm", plan.size.centre, "time"))
    assert [job.seed for job in late] == [1, 2]
    budget = TrainSettings.compose(*late[0].command[2:]).budget
    assert (budget.training_seconds, budget.training_flops) == (plan.size.final_seconds, None)
    longer, trial = (replace(late[0], kind=kind) for kind in ("compute", "trial"))
    assert late[0].steps == trial.steps < longer.steps
    assert planned("60m", tmp_path, books=None).corpora["books"][0] == "data=pg19"


class Process:
    """Stands for a run's process, which has ended."""

    def __init__(self, returncode: int, said: str) -> None:
        self.returncode, self._said = returncode, said

    def communicate(self) -> tuple[None, str]:
        return None, self._said


def test_what_becomes_of_a_run(load, planned, tmp_path: Path, tiny: str, monkeypatch) -> None:
    runs = load("tournament_runs")
    plan, machine = planned(tiny, tmp_path), runs.Machine()
    job = runs.first_trials(plan, "books", "lstm")[0]

    def ends(returncode: int, said: str) -> None:
        fake = SimpleNamespace(Popen=lambda *_, **__: Process(returncode, said), DEVNULL=-3, PIPE=-1)
        monkeypatch.setattr(runs, "subprocess", fake)

    ends(1, "mambabyte: no space is left for it\n")
    with pytest.raises(
        runs.Failed, match="books, lstm, trial 0 failed with code 1: mambabyte: no space is left"
    ):
        machine.finish(job)
    assert not (job.folder / runs.RESULT).exists()
    ends(1, "mambabyte: training diverged: at step 3 the loss is nan")
    result = machine.finish(job)
    assert (result["outcome"], result["bits_per_byte"], result["learning_rate"]) == (
        "diverged",
        8.0,
        job.point.learning_rate,
    )
    ends(2, "")  # it is not run again
    assert machine.finish(job) == result
    other = replace(job, plan=planned(tiny, tmp_path, "data.workers=1"))
    with pytest.raises(runs.Failed, match="other settings"):
        machine.finish(other)
    refused = replace(job, number=1, plan=planned(tiny, tmp_path, trial_flops=1.0))
    assert machine.finish(refused)["outcome"].startswith(
        "refused: budget.training_flops=1 is less than one step"
    )
    late = runs.Machine(until=time.monotonic() - 1)
    with pytest.raises(runs.Stopped):
        late.finish(replace(job, number=2))
    assert late.ended == "the hours are over"
    machine.stop()
    with pytest.raises(runs.Stopped):
        machine.finish(replace(job, number=3))


class InTurn:
    """A pool that makes its calls here, one after the other."""

    def __init__(self, processes: int) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None: ...

    def map(self, call, values):
        return map(call, values)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for split in ("train", "validation"):
        texts = [f"{split} {number}: " + "All happy families are alike. " * 60 for number in range(4)]
        table = pyarrow.table({"short_book_title": [str(n) for n in range(4)], "text": texts})
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_tournament_from_its_trials_to_its_page(
    load, tmp_path: Path, tiny: str, books: Path, monkeypatch, capsys
) -> None:
    tournament = load("tournament")
    begun = []

    def in_this_process(machine, job, command) -> str:
        begun.append(job.folder.name)
        train.run(TrainSettings.compose(*command[2:]))
        return "finished"

    def call() -> int:
        words = (
            f"tournament.py --size {tiny} --books {books} --models mambabyte lstm --corpora books --trials 2"
        )
        words += f" --seeds 1 --processes 1 --runs {tmp_path}/runs --out {tmp_path}/out"
        monkeypatch.setattr(sys, "argv", [*words.split(), f"data.folder={tmp_path}/prepared"])
        with pytest.raises(SystemExit) as end:
            tournament.main()
        return end.value.code

    monkeypatch.setattr(tournament, "ThreadPoolExecutor", InTurn)
    monkeypatch.setattr(load("tournament_runs").Machine, "_outcome", in_this_process)
    assert call() == 0
    assert begun == [*["trial_00", "trial_01"] * 2, *["compute_1"] * 2, *["time_1"] * 2]
    results, curves, lengths = load("tournament_csv").read(tmp_path / "out")
    assert len(results) == 8 and lengths == []
    assert {row["outcome"] for row in results} == {"finished"} and len(curves) >= 4
    for row in results:
        assert row["bits_per_byte"] < 9 and row["training_flops"] > 0
        assert row["command"].startswith("mambabyte train ") and row["width"] in (16, 32)
    compute = [row for row in results if row["kind"] == "compute"]
    assert all(row["training_flops"] == pytest.approx(2e8, rel=0.1) for row in compute)
    page = (tmp_path / "out" / "tournament.md").read_text()
    assert "2 models on books: 4 trials" in page and (tmp_path / "out" / "tournament.png").exists()
    assert call() == 0 and len(begun) == 8  # nothing is run again
    _measures_longer_contexts(load, tmp_path, monkeypatch)


def _measures_longer_contexts(load, folder: Path, monkeypatch) -> None:
    """benchmarks/long_context.py after it, one of its measurements in a process."""
    long_context = load("long_context")
    place = folder / "runs" / "books"
    for model in ("mambabyte", "lstm"):
        for n in (64, 128):
            if (model, n) != ("lstm", 64):
                figures = json.dumps({"bytes": 500, "bits_per_byte": 3 - n / 128})
                (place / model / "compute_1" / f"context_{n}_500.json").write_text(figures)
    words = f"long_context.py --runs {folder}/runs --contexts 64 128 --max-bytes 500 --out {folder}/out"
    monkeypatch.setattr(sys, "argv", words.split())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    long_context.main()
    rows = load("tournament_lengths").read_lengths(folder / "out" / "long_context.csv")
    assert [(row["model"], row["context_length"], row["recurrent"]) for row in rows] == [
        *[("mambabyte", 64, 1), ("mambabyte", 128, 1), ("lstm", 64, 1), ("lstm", 128, 1)]
    ]
    assert rows[0]["bits_per_byte"] == 2.5 and rows[2]["bytes"] == 500 and 0 < rows[2]["bits_per_byte"] < 9
    page = (folder / "out" / "tournament.md").read_text()
    assert "| MambaByte, state carried | 64 | 2.500 | 2.000 | 0.500 |" in page


def test_only_a_window_beyond_a_models_positions_has_no_figure(load, tmp_path: Path, monkeypatch) -> None:
    long_context = load("long_context")
    each = long_context.Measurement(tmp_path, result("megabyte", "compute", 2.0), 4096, 500)

    def fails(sentence: str) -> None:
        done = SimpleNamespace(returncode=1, stderr=f"a warning\nmambabyte: {sentence}\n")
        monkeypatch.setattr(long_context, "subprocess", SimpleNamespace(run=lambda *_, **__: done))

    fails("no space is left on the device")
    with pytest.raises(SystemExit, match="4096: mambabyte: no space is left"):
        each.row  # noqa: B018, as it is computed when it is asked for
    fails("context_length=4,096 is more than the 512 bytes that this MegaByte has positions for: lower it")
    assert each.row["bits_per_byte"] is None


def result(model: str, kind: str, bits: float, seed: int = 1, corpus: str = "books", **more) -> dict:
    row = {"size": "cpu", "corpus": corpus, "model": model, "kind": kind, "number": 0, "seed": seed}
    row |= {"width": 96, "depth": 4, "learning_rate": 0.004, "batch_bytes": 4096, "context_length": 512}
    row |= {"parameters": 280_000, "steps": 10, "bytes_trained": 2e6, "training_flops": 8e12}
    row |= {
        "measured_flops": None,
        "training_seconds": 60.0,
        "bits_per_byte": bits,
        "stateful_bits_per_byte": None,
    }
    budget = {
        "trial": "budget.training_flops=1e+12",
        "compute": "budget.training_flops=3e+12",
        "time": "budget.training_flops=null budget.training_seconds=30",
    }[kind]
    command = f"mambabyte train data.windows=packed data.workers=0 seed=1 {budget} run_dir=runs"
    row |= {"outcome": "finished", "machine": "a machine", "command": command}
    return {**row, **more, "curve": [(4e12, bits + 0.2), (8e12, bits)]}


def made_up() -> list[dict]:
    trials = [result(name, "trial", 3.0) for name in ("mambabyte", "megabyte")]
    trials += [
        result("lstm", "trial", 3.0, depth=2),
        result("lstm", "trial", 3.1, number=1, depth=6, width=128),
    ]
    runs = [
        result("mambabyte", "compute", 2.10, stateful_bits_per_byte=2.05),
        result("mambabyte", "compute", 2.18, seed=2, stateful_bits_per_byte=2.15),
        result("megabyte", "compute", 2.00, measured_flops=6e12),
        result("megabyte", "compute", 2.30, seed=2),
        result("lstm", "compute", 2.20),
        result("lstm", "compute", 8.0, seed=2, outcome="diverged"),
        *(result(name, "time", bits) for name, bits in (("mambabyte", 2.0), ("megabyte", 1.9))),
    ]
    return [*trials, *runs]


def test_the_first_line_says_who_wins(load, tmp_path: Path) -> None:
    pages = load("tournament_page")
    rows = made_up()
    first = pages.page(rows, [], tmp_path, tmp_path / "a.md").splitlines()[0]
    assert first == (
        "**MambaByte loses**: it is 2nd of 2 on books at equal time, 2.000 bits per byte against MegaByte's "
        "1.900. It is ahead on books at equal compute, 2.140 bits per byte against MegaByte's 2.150, within "
        "the spread of the seeds. The terms are not equal: see the end of this page."
    )
    ahead = pages.verdict([row for row in rows if row["kind"] != "time"])
    assert ahead.startswith("**MambaByte is ahead of all 2 others**: on books at equal compute, 2.140")
    tied = pages.verdict([result(name, "time", 8.0) for name in ("mambabyte", "lstm")])
    assert tied.startswith("**MambaByte loses**: it is no better than 1st of 2 on books at equal time, 8.000")
    assert pages.verdict(rows[:4]) == "**MambaByte has not been compared yet.**"
    third = [result("mambabyte", "time", 3.0), *(result(n, "time", 2.0) for n in ("lstm", "megabyte"))]
    assert "it is 3rd of 3 on books at equal time, 3.000 bits per byte against LSTM's" in pages.verdict(third)


def test_the_page_is_made_of_the_csvs_alone(load, tmp_path: Path) -> None:
    pages, csvs = load("tournament_page"), load("tournament_csv")
    rows = made_up()
    csvs.write_results(rows, tmp_path / csvs.RESULTS)
    csvs.write_curves(rows, tmp_path / csvs.CURVES)
    lengths = [
        {"corpus": "books", "model": model, "seed": 1, "trained_at": 512, "recurrent": int(model == "lstm")}
        | {"context_length": n, "bytes": 1000, "bits_per_byte": bits, "machine": "m", "command": "c"}
        for model, n, bits in (
            *(("lstm", 256, 2.5), ("lstm", 1024, 2.25)),
            *(("megabyte", 256, 2.5), ("megabyte", 512, 2.4), ("megabyte", 1024, None)),
        )
    ]
    load("tournament_lengths").write_lengths(lengths, tmp_path / "long_context.csv")
    found = csvs.read(tmp_path)
    keys = csvs.RESULT_COLUMNS
    assert found[0] == [{key: row[key] for key in keys} for row in rows] and found[2] == lengths
    assert len(found[1]) == 2 * 6
    (tmp_path / "docs").mkdir()
    place = tmp_path / "docs" / "page.md"
    page = pages.page(found[0], found[2], tmp_path, place)
    assert "3 models on books: 4 trials of 8.0e12 training FLOPs each, then 8 runs" in page
    assert "Not run: gated S4D, Transformer, Perceiver AR, SpaceByte, H-Net." in page
    part = pages.page(rows[:-2], [], tmp_path, place)
    assert "H-Net, books at equal time." in part and "the best points, with 8.0e12 FLOPs." in part
    assert "1 of the 12 runs diverged or were refused by the model, and count as 8 bits." in page
    assert "| **MambaByte** | 96 x 4 | 280,000 | 2.00 MB | 2.140 (2.100 to 2.180) | 2.100 |" in page
    assert "| LSTM | 96 x 4 | 280,000 | 2.00 MB | 5.100 (2.200 to 8.000) |  |" in page
    assert "| books | MegaByte | 0.004 | 4,096 | 512 | 3.000 | 3.000 | 1 |" in page
    assert "| width | 96, 128 | 3 of 3 | 0 of 3 |" in page
    assert "The ranges have changed since these runs" in page, "as no model is 96 wide any more"
    assert "| depth | 2, 4, 6 | 1 of 3 | 0 of 3 |" in page
    assert "| LSTM, state carried | 512 | 2.500 | - | 2.250 | 0.250 |" in page
    assert "| MegaByte | 512 | 2.500 | 2.400 | - | 0.100 |" in page
    assert "validation bytes: MegaByte 0.75 to 0.75 times as much)" in page
    assert f"long_context.py --out docs/benchmarks --page-file {os.path.relpath(place, ROOT)}\n" in page
    assert "- The terms are not equal: of trials, runs at equal compute and runs at equal time" in page
    assert "there are 2, 2, 1, but of MambaByte on books 1, 2, 1; MegaByte on books 1, 2, 1; LSTM" in page
    assert "gated S4D ahead of MambaByte" not in page, "of no page but the project's own"
    repeated = " --corpora books --models mambabyte megabyte lstm --trials 2 --seeds 1 2 --trial-flops 1e12"
    assert f"{repeated} --final-flops 3e12 --final-seconds 30 -- data.workers=0\n" in page
    assert "](../tournament.png)" in page and "](../long_context.png)" in page
    pages.draw(*found, tmp_path)
    for name in (pages.FIGURE, "long_context.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_in_docs_is_that_of_the_figures_there(load) -> None:
    pages, csvs = load("tournament_page"), load("tournament_csv")
    results, _, lengths = csvs.read(DOCS)
    places = [DOCS / "tournament.md", ROOT / "docs" / "comparison.md"]
    written = [p for p in places if p.exists() and "benchmarks/tournament.py --books" in p.read_text()]
    assert len(written) == 1
    assert written[0].read_text() == pages.page(results, lengths, DOCS, written[0])


def test_what_it_will_take_is_estimated(load, planned, tmp_path: Path, tiny: str) -> None:
    said = load("tournament_estimate").estimate(planned(tiny, tmp_path), processes=2)
    assert "8 trials, 4 runs at equal compute, 2 at a time: " in said and "lstm" in said


def test_a_model_that_this_version_lacks_is_left_out_and_said(
    load, tmp_path: Path, monkeypatch, capsys
) -> None:
    tournament, models = load("tournament"), load("tournament_space").MODELS
    monkeypatch.setitem(models, "lstm", replace(models["lstm"], choice="no_such_model"))
    words = f"tournament.py --list --books b --models lstm mambabyte --trials 2 --runs {tmp_path}/runs"
    monkeypatch.setattr(sys, "argv", words.split())
    tournament.main()
    said = capsys.readouterr()
    assert said.err == "lstm is left out: this version has no model=lstm\n"
    assert said.out.count("mambabyte train") == 1, "the trials on code begin where those on books end"
    for corpus, count in (("books", 1), ("code", 2)):
        assert f"# {corpus}, mambabyte: {count} more trials, which depend on these" in said.out
