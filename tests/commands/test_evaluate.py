"""`mambabyte eval`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mambabyte.commands import evaluate
from mambabyte.errors import UserError


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


def test_the_sentence_names_the_protocol(configure, finished: Path, capsys) -> None:
    evaluate.run(configure("eval", f"ckpt={finished}/checkpoints/last.ckpt"))
    assert "bits per byte (disjoint, context 32 bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override", ["metrics=[speed]", "device=cuda:99", "split=test", "precision=fp8", "context_length=0"]
)
def test_wrong_settings_are_told_in_a_sentence(override: str, configure, finished: Path) -> None:
    with pytest.raises(UserError):
        evaluate.run(configure("eval", f"ckpt={finished}", override))


def test_the_command_line_prints_one_json_object_and_nothing_else(finished: Path) -> None:
    command = [sys.executable, "-m", "mambabyte", "eval", "--bpb", "--json", f"ckpt={finished}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] > 0
