"""mambabyte data prepare and data inspect on a small corpus."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mambabyte import checkpoints
from mambabyte.cli.main import main
from mambabyte.commands import data_inspect, data_prepare
from mambabyte.commands import eval as evaluate
from mambabyte.errors import UserError


@pytest.fixture
def places(corpus: Path, tmp_path: Path) -> list[str]:
    return [
        "data=files",
        f"data.path={corpus}",
        "data.validation_fraction=0.2",
        f"data.folder={tmp_path}/prepared",
    ]


def test_prepare_writes_every_split_once(configure, places, capsys, tmp_path: Path) -> None:
    data_prepare.run(configure("data prepare", *places))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["train", "validation"]
    assert lines[0].endswith(f"in {Path(lines[0].split(' in ')[1])}")
    data_prepare.run(configure("data prepare", *places, "json=true"))
    found = json.loads(capsys.readouterr().out)
    assert sum(split["num_documents"] for split in found.values()) == 20
    for split in found.values():
        for name, sha256 in split["sha256"].items():
            assert hashlib.sha256((Path(split["folder"]) / name).read_bytes()).hexdigest() == sha256
    assert len(list((tmp_path / "prepared").glob("[!.]*"))) == 2


def test_prepare_one_split_and_what_training_validates_on(configure, places, capsys) -> None:
    data_prepare.run(configure("data prepare", *places, "split=validation", "data.validation_bytes=100"))
    assert "100 bytes" in capsys.readouterr().out
    with pytest.raises(UserError, match="splits train and validation, not 'test'"):
        data_prepare.run(configure("data prepare", *places, "split=test"))
    (path,) = (place for place in places if place.startswith("data.path"))
    one = [path + "/07.txt" if place == path else place for place in places]
    data_prepare.run(configure("data prepare", *one, "split=train"))
    assert capsys.readouterr().out.startswith("train: 1 document, ")
    all_train = configure("data prepare", *one, "data.validation_fraction=0")
    data_prepare.run(all_train)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["train"]


def test_inspect_reports_and_plots(configure, places, capsys, tmp_path: Path) -> None:
    data_inspect.run(configure("data inspect", *places, "context_length=40", "samples=2"))
    out = capsys.readouterr().out
    for part in ("documents, ", "bytes per document: min ", "valid UTF-8: 100.00% of the documents", "zstd"):
        assert part in out
    assert out.startswith("the train split: ")
    assert "data.validation_fraction=0.2 of the data is held out" in out.splitlines()[0]
    assert out.count("window ") == 2
    plot = Path(next(line for line in out.splitlines() if line.startswith("plot: ")).removeprefix("plot: "))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.parent == next((tmp_path / "prepared").glob("[!.]*"))


def test_inspect_as_json(configure, places, capsys, tmp_path: Path) -> None:
    plot = tmp_path / "here.png"
    overrides = ["json=true", "max_bytes=500", f"out={plot}", "split=validation", "context_length=40"]
    data_inspect.run(configure("data inspect", *places, *overrides))
    found = json.loads(capsys.readouterr().out)
    assert (found["bytes"], sum(found["histogram"]), found["ascii_share"]) == (500, 500, 1.0)
    assert found["meta"]["split"] == "validation"
    assert len(found["windows"]) == min(3, found["documents"])
    assert found["plot"] == str(plot) and plot.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("out=/nowhere/at/all.png", "make its folder first, or choose another out="),
        ("out=a.strange", "set out="),
        ("context_length=0", "context_length must be at least 1"),
        ("samples=-1", "samples must be at least 0"),
    ],
)
def test_inspect_with_wrong_settings(override, message, configure, places) -> None:
    with pytest.raises(UserError, match=message):
        data_inspect.run(configure("data inspect", *places, override))


def from_its_parent(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Goes to the folder that holds the corpus; returns the overrides that train on it from there."""
    monkeypatch.chdir(corpus.parent)
    path = f"data.path={corpus.name}"
    return ["data=files", path, "data.validation_fraction=0.2", "data.windows=packed"]


def test_a_run_on_a_relative_path_is_resumed_there_and_evaluated_from_anywhere(
    configure, start, corpus: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    relative = from_its_parent(corpus, monkeypatch)
    run_dir = start("relative", *relative)
    assert checkpoints.read(run_dir).config["data"]["source"]["path"] == str(corpus)
    assert start("relative", *relative, "trainer.max_steps=14") == run_dir
    assert checkpoints.read(run_dir).step == 14
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    evaluate.run(configure("eval", f"ckpt={run_dir}"))
    assert "bits per byte" in capsys.readouterr().out


def test_a_run_that_stored_a_relative_path_goes_on(start, corpus: Path, monkeypatch) -> None:
    # as version 0.1.0 did
    relative = from_its_parent(corpus, monkeypatch)
    monkeypatch.setattr("mambabyte.data.DataSettings.with_absolute_paths", lambda settings: settings)
    run_dir = start("relative", *relative)
    assert checkpoints.read(run_dir).config["data"]["source"]["path"] == corpus.name
    monkeypatch.undo()
    monkeypatch.chdir(corpus.parent)
    start("relative", *relative, "trainer.max_steps=14")
    assert checkpoints.read(run_dir).step == 14


def test_inspect_sends_a_terminal_no_commands_of_the_data(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards: the command line sets it
    (tmp_path / "a\x1b[31m.txt").write_bytes(b"\x1b]0;title\x07 and \xff text \x9b31m, \r once more. " * 9)
    words = ["data=files", f"data.path={tmp_path}", f"data.folder={tmp_path}/prepared", "split=train"]
    assert main(["data", "inspect", *words, "data.validation_fraction=0", "context_length=40"]) == 0
    out = capsys.readouterr().out
    assert "␛]0;title␇ and \\xff text" in out
    assert not {"\x1b", "\x07", "\r"} & set(out)
