"""The end of `mambabyte train`: the last checkpoint measured, summarized and reported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mambabyte import checkpoints
from mambabyte.commands import train
from mambabyte.errors import UserError
from mambabyte.runs.run import read_run


def test_summary_holds_the_figures_and_how_they_were_made(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["name"], summary["step"], summary["bytes_seen"]) == ("finished", 12, 3072)
    own = {
        tensor.data_ptr(): tensor.numel() for tensor in checkpoints.read(finished).state_dict.values()
    }  # tied ones once
    assert summary["parameters"] == sum(own.values())
    validation = summary["validation"]
    assert validation["protocol"]["name"] == "disjoint"
    assert validation["protocol"]["context_length"] == 32
    stateful = summary["validation_stateful"]
    assert stateful["protocol"]["name"] == "stateful" and stateful["bytes"] == validation["bytes"]
    assert validation["precision"] == "fp32"
    assert 2 < validation["bits_per_byte"] < 6
    assert set(summary["compressors"]) == {"gzip -9", "bzip2 -9", "xz -9e", "zstd -19", "brotli -q 11"}
    assert summary["sample"]
    assert Path(summary["loss_curve"]).is_file()


def test_the_measuring_at_the_end_can_be_skipped_and_made_up_for(start, finished: Path, capsys) -> None:
    run_dir = start("skipped", "callbacks.evaluate_bytes=0")
    out = capsys.readouterr().out
    assert out.startswith("validation: not measured, as callbacks.evaluate_bytes=0 asks\nsample:")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["validation"] is summary["validation_stateful"] is summary["worst_document"] is None
    assert summary["compressors"] == {} and summary["sample"]
    assert read_run(run_dir).state == "trained, not measured"
    start("skipped", "callbacks.evaluate_bytes=0")
    assert "measuring" not in capsys.readouterr().err

    start("skipped")
    made_up, theirs = (json.loads((path / "summary.json").read_text()) for path in (run_dir, finished))
    assert made_up["validation"]["nats"] == theirs["validation"]["nats"]
    assert read_run(run_dir).state == "complete"
    start("skipped", "callbacks.evaluate_bytes=0")
    assert capsys.readouterr().out.count("bits per byte (protocol disjoint") == 2, "what is known is shown"


@pytest.mark.parametrize("validation", [{"bits_per_byte": 2.5}, None])
def test_a_run_answers_with_what_a_search_minimises(validation, configure, monkeypatch, capsys) -> None:
    result = {"validation": validation}
    monkeypatch.setattr("mambabyte.training.train.train", lambda settings: result)
    assert train.run(configure("train", "json=true")) == (2.5 if validation else None)
    assert json.loads(capsys.readouterr().out) == result


def test_the_measuring_at_the_end_can_be_shortened(start, capsys) -> None:
    run_dir = start("short", "callbacks.evaluate_bytes=100")
    for name in ("validation", "validation_stateful"):
        figure = json.loads((run_dir / "summary.json").read_text())[name]
        assert (figure["bytes"], figure["protocol"]["max_bytes"]) == (100, 100)
    out, err = capsys.readouterr()
    assert "100 bytes in 1 document" in out and "measuring 100 validation bytes" in err


def test_the_worst_document_is_named(start, corpus: Path, tmp_path: Path, capsys) -> None:
    texts = tmp_path / "texts"
    shutil.copytree(corpus, texts)
    draw = np.random.default_rng(0)
    for number in range(40):  # a few of them are held out
        (texts / f"noise{number}.bin").write_bytes(draw.integers(0, 256, 300, np.uint8).tobytes())
    summary = json.loads((start("worst", "data=files", f"data.path={texts}") / "summary.json").read_text())
    worst = summary["worst_document"]
    assert worst["name"].startswith("noise") and worst["bytes"] == 300
    assert worst["bits_per_byte"] > summary["validation"]["bits_per_byte"]
    assert f"worst document: {worst['name']} ({worst['bits_per_byte']:.4f} bits" in capsys.readouterr().out


def test_a_complete_run_says_so_and_reports_again(start, capsys) -> None:
    run_dir = start("again")
    first = capsys.readouterr().out
    before = (run_dir / "checkpoints" / "step_00000012.ckpt").stat().st_mtime_ns
    start("again")
    second = capsys.readouterr()
    assert "is complete at step 12" in second.err
    assert second.out == first
    assert (run_dir / "checkpoints" / "step_00000012.ckpt").stat().st_mtime_ns == before

    (run_dir / "summary.json").unlink()
    start("again")
    assert capsys.readouterr().out == first
    start("again", "trainer.max_steps=14")
    assert checkpoints.read(run_dir).step == 14


def test_a_summary_is_that_of_the_weights_trained_last(start) -> None:
    run_dir = start("anew")
    first = json.loads((run_dir / "summary.json").read_text())
    shutil.rmtree(run_dir / "checkpoints")
    start("anew", "seed=5")
    second = json.loads((run_dir / "summary.json").read_text())
    assert second["step"] == first["step"] and second["validation"]["nats"] != first["validation"]["nats"]
    assert json.loads((run_dir / "summary_at_step_12.json").read_text()) == first


def test_a_run_may_end_where_it_stands_and_no_earlier(start, capsys) -> None:
    run_dir = start("shorter", "callbacks.evaluate_bytes=0", "trainer.max_steps=6")
    with pytest.raises(UserError, match=r"has taken 6 steps already, more than trainer\.max_steps=4"):
        start("shorter", "trainer.max_steps=4")
    content = checkpoints.read(run_dir).content
    content["mambabyte"]["config"]["trainer"]["max_steps"] = 1000  # as if a longer run had been stopped
    checkpoints.write(content, run_dir / "checkpoints" / "step_00000006.ckpt")
    start("shorter", "trainer.max_steps=6")
    assert read_run(run_dir).state == "complete"
    assert json.loads((run_dir / "sittings.json").read_text())[-1]["changed"] == {
        "trainer.max_steps": [1000, 6],
        "callbacks.evaluate_bytes": [0, None],
    }


def test_a_run_on_the_cpu_is_measured_there_beside_a_gpu(start, monkeypatch) -> None:
    run_dir = start("cpu")
    (run_dir / "summary.json").unlink()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    start("cpu")
    assert json.loads((run_dir / "summary.json").read_text())["validation"]["device"] == "cpu"


def test_the_report_is_on_stdout_and_progress_on_stderr(start, capsys) -> None:
    run_dir = start("report")
    out, err = capsys.readouterr()
    assert out.startswith("validation: ")
    for part in (
        "bits per byte (protocol disjoint, context 32 bytes",
        "gzip -9",
        "xz -9e",
        "zstd -19",
        "sample:",
    ):
        assert part in out
    assert str(run_dir) in out
    assert str(run_dir / "loss_curve.png") in out
    assert "step 12/12 | " in err
    assert " bpb | " in err
    assert "eta 0 s" in err


def test_a_model_whose_state_grows_is_summarized_without_stateful(
    start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mambabyte.models import MambaByte

    monkeypatch.setattr(MambaByte, "recurrent", False)
    summary = json.loads((start("grows") / "summary.json").read_text())
    assert summary["validation_stateful"] is None
    assert summary["validation"]["protocol"]["name"] == "disjoint"
