"""`mambabyte eval`."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mambabyte.commands import eval as evaluate
from mambabyte.errors import UserError
from mambabyte.runtime.precision import Precision


def measured(configure, capsys, *overrides: str) -> dict:
    evaluate.run(configure("eval", *overrides, "json=true"))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_the_default_figure_is_that_of_the_end_of_the_run(configure, finished: Path, capsys) -> None:
    result = measured(configure, capsys, f"ckpt={finished}")
    summary = json.loads((finished / "summary.json").read_text())["validation"]
    for key in summary.keys() - {"seconds"}:
        assert result[key] == summary[key], key
    assert result["checkpoint"].endswith("step_00000012.ckpt")
    assert result["split"] == "validation"


def test_batch_size_and_device_do_not_change_the_figure(configure, finished: Path, capsys) -> None:
    one = measured(configure, capsys, f"ckpt={finished}", "batch_size=1", "device=cpu")
    many = measured(configure, capsys, f"ckpt={finished}", "batch_size=64")
    assert one["nats"] == pytest.approx(many["nats"], rel=1e-6)


def test_files_that_are_given_are_measured_whole(configure, finished: Path, capsys, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_bytes(b"print(1)\n" * 100)

    def size(*overrides: str) -> int:
        given = ("data=files", f"data.path={path}", f"data.folder={tmp_path}/prepared")
        return measured(configure, capsys, f"ckpt={finished}", *given, *overrides)["bytes"]

    assert size() == 900
    assert size("data.validation_fraction=0.1") == 90
    assert size("split=train") == 855  # what a training run on them would see
    evaluate.run(
        configure(
            "eval", f"ckpt={finished}", "data=files", f"data.path={path}", f"data.folder={tmp_path}/prepared"
        )
    )
    assert capsys.readouterr().out.startswith("all of it: ")


def test_other_data_context_and_protocol(
    configure, finished: Path, corpus: Path, capsys, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(4):
        (other / f"{number}.txt").write_bytes(bytes(range(256)) * (number + 1))
    overrides = [
        "data=files",
        f"data.path={other}",
        "data.validation_fraction=1.0",
        f"data.folder={tmp_path}/p",
    ]
    result = measured(
        configure,
        capsys,
        f"ckpt={finished}",
        *overrides,
        "protocol=stateful",
        "context_length=50",
        "max_bytes=600",
    )
    assert (result["bytes"], result["protocol"]["name"], result["protocol"]["context_length"]) == (
        600,
        "stateful",
        50,
    )
    train = measured(configure, capsys, f"ckpt={finished}", "split=train")
    assert train["data_fingerprint"] != result["data_fingerprint"]


def test_auto_measures_in_the_faster_precision_and_says_why(configure, finished, monkeypatch, capsys) -> None:
    fastest = Precision("bf16", "3.1 times as fast as fp32 on this processor")
    monkeypatch.setattr("mambabyte.runtime.precision.fastest_precision", lambda device: fastest)
    evaluate.run(configure("eval", f"ckpt={finished}", "precision=auto", "json=true", "max_bytes=200"))
    captured = capsys.readouterr()
    assert json.loads(captured.out)["precision"] == "bf16"
    assert f"mambabyte: precision=bf16 ({fastest.reason})" in captured.err


@pytest.mark.parametrize("slow", ["bf16 products take 14 times as long", None])
def test_bf16_is_obeyed_and_said_to_be_slow(slow, configure, finished, monkeypatch, capsys) -> None:
    monkeypatch.setattr("mambabyte.runtime.precision.slowness_of_bf16", lambda device: slow)
    evaluate.run(configure("eval", f"ckpt={finished}", "precision=bf16", "json=true", "max_bytes=200"))
    captured = capsys.readouterr()
    assert json.loads(captured.out)["precision"] == "bf16"
    assert captured.err.count(f"mambabyte: {slow}: precision=auto takes the faster") == (slow is not None)


def test_the_sentence_names_the_protocol(configure, finished: Path, capsys) -> None:
    evaluate.run(configure("eval", f"ckpt={finished}/checkpoints/last.ckpt"))
    assert "bits per byte (disjoint, context 32 bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override",
    [
        "metrics=[speed]",
        "metrics=[]",
        "device=cuda:99",
        "split=test",
        "precision=fp8",
        "context_length=0",
        ["metrics=[heatmap]", "heatmap_bytes=-1"],
        ["metrics=[proof]", "protocol=sliding"],
        ["metrics=[proof]", "precision=bf16"],
        ["metrics=[proof]", "precision=auto"],
        ["protocol=sliding", "stride=99"],
        ["protocol=stateful", "stride=8"],
        ["metrics=[bpb,utf8]", "samples=0"],
    ],
)
def test_wrong_settings_are_reported_in_a_sentence(
    override: str | list[str], configure, finished: Path
) -> None:
    overrides = [override] if isinstance(override, str) else override
    with pytest.raises(UserError):
        evaluate.run(configure("eval", f"ckpt={finished}", *overrides))


EVERYTHING = [
    "metrics=[bpb,word_perplexity,compressors,noise,lengths,utf8,proof,heatmap]",
    "heatmap_bytes=60",
    "samples=2",
    "sample_bytes=8",
    "max_bytes=400",
    "protocol=stateful",
]


def test_every_figure_is_found(configure, finished: Path, capsys, tmp_path: Path) -> None:
    result = measured(configure, capsys, f"ckpt={finished}", *EVERYTHING, f"out={tmp_path}/out")
    assert result["bytes"] == 400
    assert result["word_perplexity"]["counts"] == "counted"
    assert result["compressors"].keys() >= {"gzip -9", "bzip2 -9", "xz -9e", "zstd -19", "brotli -q 11"}
    assert len(result["noise"]) == 10
    assert {row["noise"] for row in result["noise"]} >= {"antspeak", "swap 0.3"}
    proof = result["proof"]
    payload = 8 * (proof["file_bytes"] - proof["overhead"]) / 400
    assert payload == pytest.approx(result["bits_per_byte"], abs=8 * 8 / 400)  # two words that end a frame
    assert result["utf8"]["samples"] == 2
    assert result["lengths"]["training_length"] == 32
    assert sum(document["bytes"] for document in result["per_document"]) == 400
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bits.html", "lengths.png"]


def test_every_figure_is_reported(configure, finished: Path, capsys, tmp_path: Path) -> None:
    evaluate.run(configure("eval", f"ckpt={finished}", *EVERYTHING, f"out={tmp_path}/out"))
    out = capsys.readouterr().out
    for part in (
        "bits per byte (stateful", "word perplexity: ", "  brotli -q 11 ", "  this model ", "  antspeak ",
        "proof: 400 bytes compressed to ", "lengths.png", "valid UTF-8", "bits.html",
    ):  # fmt: skip
        assert part in out, part


def test_nothing_is_written_where_one_stands(
    configure, finished: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    small = ["max_bytes=200", "save_every=0"]
    evaluate.run(configure("eval", f"ckpt={run}", *small))
    assert not (run / "evaluation").exists(), "the progress of a finished evaluation is removed"
    figures = ["metrics=[heatmap]", "heatmap_bytes=20", *small]
    evaluate.run(configure("eval", f"ckpt={run}", *figures))
    assert [path.name for path in (run / "evaluation").iterdir()] == ["bits.html"]
    (run / "checkpoints" / "last.ckpt").resolve().rename(tmp_path / "alone.ckpt")
    evaluate.run(configure("eval", f"ckpt={tmp_path}/alone.ckpt", *figures))
    assert (tmp_path / "alone.ckpt.evaluation" / "bits.html").is_file()
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("metric", ["lengths", "heatmap"])
def test_a_place_that_cannot_be_written_is_said_before_measuring(
    metric: str, configure, finished: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another out="):
        evaluate.run(configure("eval", f"ckpt={finished}", f"metrics=[{metric}]", f"out={tmp_path}/file/out"))
    assert "%" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("metric", "picture"), [("lengths", "lengths.png"), ("heatmap", "bits.html")])
def test_a_full_disk_loses_the_picture_and_no_figure(
    metric: str, picture: str, configure, finished: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / picture).symlink_to("/dev/full")
    how = [f"metrics=[{metric}]", f"out={tmp_path}", "max_bytes=300", "heatmap_bytes=20"]
    with pytest.raises(UserError, match=rf"cannot write '.*{picture}' \(No space left on device\)"):
        evaluate.run(configure("eval", f"ckpt={finished}", *how))
    assert "bits per byte (disjoint" in capsys.readouterr().out


def test_text_without_words_is_valid_json(configure, finished: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "one").write_bytes(b"spaceless" * 120)
    data = ["data=files", f"data.path={tmp_path}/one", f"data.folder={tmp_path}/p"]
    data.append("data.validation_fraction=1.0")
    overrides = [f"ckpt={finished}", *data, "metrics=[word_perplexity,noise]"]
    evaluate.run(configure("eval", *overrides, "json=true"))
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["word_perplexity"]["word_perplexity"] is None
    assert result["word_perplexity"]["reason"] == "its words are too long for a float64"
    assert {row["increase"] for row in result["noise"]} == {None}
    assert all(row["reason"] for row in result["noise"])
    evaluate.run(configure("eval", *overrides))
    assert "no word perplexity, its words are too long" in capsys.readouterr().out


def test_two_processes_print_one_and_the_same_figure(finished: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mambabyte", "eval", "--bpb", "--json", f"ckpt={finished}", "device=cpu"]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ
            | {"WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        )
        for ranks in (1, 2) for rank in range(ranks)
    ]  # fmt: skip
    alone, first, second = (process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert second == ""
    # fp32: the batches are others
    assert json.loads(first)["nats"] == pytest.approx(json.loads(alone)["nats"], rel=1e-6)


def test_the_command_line_prints_one_json_object_and_nothing_else(finished: Path) -> None:
    command = [sys.executable, "-m", "mambabyte", "eval", "--bpb", "--json", f"ckpt={finished}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] > 0
