"""What can be typed, what reaches the task, and how mistakes are answered."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mambabyte
from mambabyte.errors import Interrupted, UserError


@pytest.fixture(autouse=True)
def _source_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(mambabyte.__file__).parents[1]))


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


def test_help_imports_nothing_heavy():
    done = python(
        "import sys\n"
        "from mambabyte.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'hydra', 'lightning', 'numpy', 'omegaconf', 'yaml'} & set(sys.modules)))"
    )
    assert all(command in done.stdout for command in ("train", "eval", "generate", "doctor"))
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_importing_the_package_and_composing_a_configuration_import_no_torch(conf: Path):
    code = (
        "import sys, pathlib, mambabyte, mambabyte.config.composition as composition\n"
        f"composition.config_dir = lambda: pathlib.Path({str(conf)!r})\n"
        "from mambabyte.cli.main import main\n"
        "code = main(['train', 'experiment=quickstart', '--cfg', 'job', '--resolve'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "run_dir: runs/quickstart" in done.stdout


def test_version(cli):
    assert cli("--version") == 0
    assert cli.out == f"mambabyte {mambabyte.__version__}\n"


def test_no_command_prints_the_help_and_fails(cli):
    assert cli() == 1
    assert "commands:" in cli.err


def test_a_commands_help_lists_options_groups_and_settings(cli):
    assert cli("train", "--help") == 0
    assert "--multirun" in cli.out
    assert "model: large, small" in cli.out
    assert "context_length: 1024" in cli.out
    assert cli.jobs == []
    assert cli("eval", "-h") == 0
    assert "--bpb" in cli.out
    assert "protocol: disjoint" in cli.out
    assert "FILE " in cli.out and "the file to measure" in cli.out


@pytest.mark.parametrize("spelling", ["experiment=quickstart", "+experiment=quickstart"])
def test_both_spellings_of_an_experiment(cli, spelling):
    assert cli("train", spelling, "context_length=64") == 0
    (job,) = cli.jobs
    assert (job["name"], job["seed"], job["run_dir"]) == ("quickstart", 3, "runs/quickstart")
    assert (job["model"], job["context_length"]) == ({"width": 1024}, 64)
    assert "experiment" not in job
    assert "hydra" not in job


def test_nothing_is_written_by_the_front(cli):
    assert cli("train") == 0
    assert cli("eval", "ckpt=a") == 0
    assert cli("eval", "-m", "ckpt=a,b") == 0
    assert [job["ckpt"] for job in cli.jobs] == ["a", "b"]
    assert list(cli.folder.iterdir()) == []
    assert cli("train", "-m", "seed=1,2") == 0
    assert [path.name for path in cli.folder.rglob("*.*")] == ["multirun.yaml"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--bpb", "ckpt=a", "max_bytes=9", "--json"],
        ["ckpt=a", "--json", "max_bytes=9", "--bpb"],
        ["--ckpt", "a", "--bpb", "max_bytes=9", "json=true"],
    ],
)
def test_flags_become_overrides_in_any_order(cli, argv):
    assert cli("eval", *argv) == 0
    (job,) = cli.jobs
    assert (job["ckpt"], job["max_bytes"], job["json"], job["metrics"]) == ("a", 9, True, ["bpb"])
    assert "data" not in job


def test_the_flags_of_eval_add_up(cli):
    assert cli("eval", "--show", "2000", "--noise", "ckpt=a", "--prove", "--bpb", "--word-perplexity") == 0
    (job,) = cli.jobs
    assert job["metrics"] == ["bpb", "word_perplexity", "noise", "proof", "heatmap"]
    assert job["heatmap_bytes"] == 2000
    assert cli("eval", "ckpt=a", "metrics=[compressors, utf8]", "--prove") == 0
    assert cli.jobs[0]["metrics"] == ["compressors", "utf8", "proof"]
    assert cli("eval", "ckpt=a", "metrics=[]", "--bpb") == 0
    assert cli.jobs[0]["metrics"] == ["bpb"]


def test_a_folder_of_ones_own_yaml(cli, tmp_path):
    mine = tmp_path / "mine"
    (mine / "experiment").mkdir(parents=True)
    (mine / "experiment" / "own.yaml").write_text("# @package _global_\nname: own\nseed: 7\n")
    assert cli("train", "experiment=own", "--config-dir", str(mine)) == 0
    assert (cli.jobs[0]["name"], cli.jobs[0]["seed"]) == ("own", 7)
    (mine / "experiment" / "own.yaml").write_text("name: [own\n")
    assert "YAML" in cli.complaint("train", "experiment=own", "--config-dir", str(mine))


def test_cfg_prints_one_group_and_runs_nothing(cli):
    assert cli("train", "model=large", "--cfg", "job", "--package", "model", "seed=4") == 0
    assert cli.out == "# @package model\nwidth: 1024\n"
    assert cli.jobs == []


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["train", "experiment=quikstart"], "there is no experiment 'quikstart'; did you mean quickstart?"),
        (["train", "+experiment=x"], "there is no experiment 'x'; choose from plain, quickstart"),
        (["train", "model=smal"], "there is no model 'smal'; did you mean small?"),
        (["train", "+hydra.foo=1"], "there is no setting hydra.foo; write a setting that Hydra has"),
        (["train", "modle=small"], "there is no setting modle; did you mean model?"),
        (["train", "trainer.max_step=3"], "there is no setting trainer.max_step; did you mean max_steps?"),
        (["train", "trainr.max_steps=3"], "there is no setting trainr; did you mean trainer?"),
        (["train", "+model=small"], "model is set already; write it without the +"),
        (["train", "+seed=1"], "seed is set already; write it without the +"),
        (["train", "quickstart"], "cannot read 'quickstart'; write key=value"),
        (["train", "seed=[a"], "cannot read 'seed=[a'; quote the value"),
        (["train", "seed=1,2"], "seed=1,2 holds a comma"),
        (["train", "model=small,hnet"], "model takes one choice, not small,hnet: add -m to run"),
        (["train", "seed=abc"], "seed must be an integer, not 'abc'"),
        (["train", "seed=1.5"], "seed must be an integer, not 1.5"),
        (["train", "name=${nothing}"], "name=${nothing} refers to a setting nothing, which there is not"),
        (["train", "name=a${b}"], "for the characters ${ write 'name=a\\${b}'"),
        (["train", "logger=[]"], "write logger=csv"),
        (["eval", "a", "ckpt=a", "data=stdlib"], "'a' is given as FILE, and data is set beside it"),
        (["eval", "a", "--data", "b", "ckpt=a"], "'a' is given as FILE, and data is set beside it"),
        (["eval", "a", "b", "ckpt=a"], "takes one FILE, not 2"),
        (["train", "model=null"], "Config group override must be a string"),
        (["train", "--config-dir", "nowhere"], "nowhere' not found"),
        (["train", "--cfg", "jobs"], "argument -c/--cfg: invalid choice: 'jobs'"),
        (["train", "--qqq"], "unrecognized arguments: --qqq; see mambabyte train --help"),
        (
            ["generate", "ckpt=a", "--draft-length", "4"],
            "there is no flag --draft-length: write draft_length=VALUE",
        ),
        (["train", "--bpb"], "unrecognized arguments: --bpb"),
        (["eval"], "ckpt is not set; add ckpt=VALUE"),
        (
            ["eval", "ckpt=a", "protocol=folding"],
            "protocol must be one of disjoint, sliding, stateful, not 'folding'",
        ),
        (["eval", "ckpt=a", "max_bytes=all"], "max_bytes must be an integer or null, not 'all'"),
        (["generate", "ckpt=a", "temperature=hot"], "temperature must be a number, not 'hot'"),
        (["doctor", "now"], "unrecognized arguments: now"),
        (["data"], "mambabyte data needs another word: data prepare or data inspect"),
        (["data", "prepar"], "there is no command 'data prepar'; did you mean data prepare?"),
        (["data", "--json"], "unrecognized arguments: --json; see mambabyte data --help"),
        (["data", "inspect", "split=all"], "split must be one of train, validation, test, not 'all'"),
        (["data", "prepare", "split=dev"], "split must be one of train, validation, test, all, not 'dev'"),
        (["data", "prepare", "--bpb"], "unrecognized arguments: --bpb; see mambabyte data prepare --help"),
        (["compress", "a", "ckpt=a", "output=b"], "there is no setting output; did you mean out?"),
        (["eval", "ckpt=a", "output_dir=b"], "there is no setting output_dir; did you mean out?"),
        (["data", "inspect", "plot=b"], "there is no setting plot; did you mean out?"),
        (["decompress", "a", "ckpt=a", "--output", "b"], "--output b; did you mean --out?"),
        (["report", "a", "--output=b"], "--output=b; did you mean --out?; see mambabyte report --help"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(cli, argv, sentence):
    assert sentence in cli.complaint(*argv)


def test_commands_of_two_words(cli):
    assert cli("data", "inspect", "--json", "split=validation", "out=a.png") == 0
    assert cli.jobs[0] == {
        "split": "validation", "max_bytes": None, "context_length": 256, "samples": 3, "seed": 0,
        "out": "a.png", "json": True, "data": {"path": None},
    }  # fmt: skip
    assert cli.argv[0][:3] == ["mambabyte", "data", "inspect"]
    assert cli("data", "prepare", "data=files", "data.path=~/x") == 0
    assert (cli.jobs[0]["split"], cli.jobs[0]["json"]) == ("all", False)
    assert cli("data", "prepare", "-m", "split=train,validation") == 0
    assert [job["split"] for job in cli.jobs] == ["train", "validation"]
    assert list(cli.folder.iterdir()) == []
    for words in (["data", "--help"], ["--help"]):
        assert cli(*words) == 0
        assert "data prepare" in cli.out and "data inspect" in cli.out
    assert cli("data", "prepare", "--help") == 0
    assert "split: all" in cli.out


def test_faults_of_the_task(cli):
    def behave(cfg):
        raise {1: UserError("mend it"), 2: Interrupted("saved"), 3: KeyboardInterrupt()}[cfg.seed]

    cli.behave = behave
    assert cli("train", "seed=1") == 1
    assert cli.err == "mambabyte: mend it\n"
    assert cli("train", "seed=2") == 75
    assert cli.err == "mambabyte: saved\n"
    assert cli("train", "seed=3") == 130
    assert cli.err == "mambabyte: stopped\n"


def test_an_unexpected_exception_keeps_its_traceback(cli):
    def behave(cfg):
        raise RuntimeError("a defect") from ValueError("its cause")

    cli.behave = behave
    assert cli("train") == 1
    assert cli.err.startswith("ValueError: its cause\n")
    assert "in behave" in cli.err and cli.err.endswith("\nRuntimeError: a defect\n")


TASK = """
import pathlib, sys, time
from mambabyte.cli.main import main
import mambabyte.config.composition
from tests.cli.conftest import fake
mambabyte.config.composition.config_dir = lambda: pathlib.Path({conf!r})
def run(settings):
    {body}
sys.exit(main(["train"] + {options!r}, lambda name: fake(name, run)))
"""


def test_a_reader_that_leaves_early_is_no_error(conf):
    code = TASK.format(conf=str(conf), options=[], body="[print('x' * 100) for _ in range(100_000)]")
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout and writer.stderr
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == ""
    assert writer.wait(timeout=30) == 1


def test_help_to_a_reader_that_has_left_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "mambabyte", "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_outside_of_training_is_a_resumable_stop_and_a_second_one_the_end(conf, number):
    waiting = "print('ready', flush=True); time.sleep(30)"
    for body, signals in (
        (waiting, 1),
        (f"""try:
        {waiting}
    finally:
        {waiting}""", 2),
    ):  # fmt: skip
        task = subprocess.Popen(
            [sys.executable, "-c", TASK.format(conf=str(conf), options=[], body=body)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert task.stdout and task.stderr
        for _ in range(signals):
            assert task.stdout.readline() == "ready\n"
            time.sleep(0.1)
            task.send_signal(number)
        said = f"mambabyte: stopped by {number.name} outside of training, so no step is lost"
        assert task.stderr.read().startswith(said if signals == 1 else "")
        assert task.wait(timeout=30) == (75 if signals == 1 else 128 + number)


def test_a_dry_run_that_is_stopped_says_nothing_of_resuming(conf):
    code = TASK.format(
        conf=str(conf), options=["--dry-run"], body="print('ready', flush=True); time.sleep(30)"
    )
    task = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert task.stdout and task.stderr
    assert task.stdout.readline() == "ready\n"
    task.send_signal(signal.SIGTERM)
    assert task.stderr.read() == ""
    assert task.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mambabyte tr", "train"),
        ("mambabyte train experiment=", "experiment=quickstart"),
        ("mambabyte train +experiment=q", "+experiment=quickstart"),
        ("mambabyte train model=", "model=large"),
        ("mambabyte train trainer.max", "trainer.max_steps="),
        ("mambabyte train seed=1 model=s", "model=small"),
        ("mambabyte eval prot", "protocol="),
        ("/usr/bin/mambabyte eval ", "batch_size="),
        ("mambabyte da", "data"),
        ("mambabyte data ", "prepare"),
        ("mambabyte data ins", "inspect"),
        ("mambabyte data prepare da", "data="),
        ("mambabyte data prepare data=", "data=stdlib"),
        ("mambabyte data inspect sam", "samples="),
    ],
)
def test_tab_completion(cli, monkeypatch, line, expected):
    monkeypatch.setenv("COMP_LINE", line)
    assert cli("-sc", "query=bash") == 0
    assert expected in cli.out.split()


def test_a_group_that_holds_a_folder_is_completed_like_the_others(cli, conf, monkeypatch):
    (conf / "data" / "shared").mkdir()
    (conf / "data" / "shared" / "base.yaml").write_text("workers: 0")
    for line, offered in [("mambabyte eval da", ["data="]), ("mambabyte train da", ["data.", "data="])]:
        monkeypatch.setenv("COMP_LINE", line)
        assert cli("-sc", "query=bash") == 0
        assert sorted(cli.out.split()) == offered


def test_completion_is_installed_for_the_program(cli):
    assert cli("-sc", "install=bash") == 0
    assert re.search(r"complete .* hydra_bash_completion mambabyte$", cli.out)


def test_doctor_speaks_json(capsys):
    from mambabyte.cli.main import main

    code = main(["doctor", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["ready"] is (code == 0)
    assert {"python", "torch", "cuda", "disk", "wandb"} <= {finding["name"] for finding in answer["findings"]}
