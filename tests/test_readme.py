"""What the README says to type, typed: each command of its bash blocks and each `mambabyte ...` of its prose.

They are run as they stand there, with settings behind them that make them small. One that nothing here covers
fails.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from mambabyte.cli import main as cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = [
    "model.d_model=16",
    "model.n_layer=1",
    "context_length=64",
    "trainer.max_steps=2",
    "optimizer.warmup_steps=2",
    "trainer.micro_batch_size=2",
    "trainer.global_batch_bytes=128",
    "trainer.accelerator=cpu",
    "data.validation_bytes=2048",
    "callbacks.sample_bytes=8",
]
BUDGET = ["budget.parameters=null", "budget.training_flops=4e9"]  # two or three steps of 128 bytes
MAKE_TRAIN = "make train"
# The command as the README has it: what is added to make it quick, and what it must say or leave behind.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "mambabyte eval --bpb ckpt=runs/quickstart": ([], "2,048 bytes in"),
    "mambabyte eval README.md --bpb ckpt=runs/quickstart": ([], f"{len(README.encode()):,} bytes in 1"),
    'mambabyte generate ckpt=runs/quickstart prompt="def "': (["bytes=8"], "def "),
    "mambabyte serve ckpt=runs/quickstart": (["--cfg", "job"], "host: 127.0.0.1"),  # it would not end
    'mambabyte generate ckpt=runs/quickstart prompt="def " prompt="class " samples=2 stop="\\n\\n"': (
        ["bytes=8"],
        "== 'class ', sample 1 ==",
    ),
    "mambabyte generate ckpt=runs/quickstart prompt_file=README.md bytes=0 save_state=readme.state": (
        [],
        f"read {len(README.encode()):,} bytes",
    ),
    "mambabyte generate ckpt=runs/quickstart state=readme.state samples=3": (
        ["bytes=8", "prompt="],
        "== no prompt, sample 2 ==",
    ),
    "mambabyte generate -i ckpt=runs/quickstart": ([], "mambabyte: wrote 0 bytes"),
    "mambabyte compress README.md ckpt=runs/quickstart": ([], "README.md.mbc"),
    "mambabyte data inspect data=stdlib": (["max_bytes=20000"], "valid UTF-8"),
    "mambabyte doctor": ([], "Training can start."),
    "mambabyte train name=notes data=files data.path=~/notes trainer.max_steps=2000": (SMALL, "runs/notes"),
    "mambabyte train experiment=finetune ckpt=runs/quickstart data.path=~/notes": (
        [*(setting for setting in SMALL if not setting.startswith("model.")), "budget=none"],
        "run: runs/finetune",
    ),
    "mambabyte train experiment=pg19 --dry-run": (["data.path=parquet_folder", *SMALL], "memory"),
    "mambabyte train experiment=pg19": (["--cfg", "job"], "emozilla/pg19"),  # it is on the hub
    "mambabyte train experiment=pg19 data.path=parquet_folder": (SMALL, "run: runs/pg19"),
    "mambabyte train -m experiment=tiny optimizer.learning_rate=1e-3,3e-3": (SMALL, "run: runs/tiny/"),
    "mambabyte train -m experiment=compute_matched model=mambabyte,megabyte,transformer": (
        [*(setting for setting in SMALL if not setting.startswith(("model.", "trainer.max_steps"))), *BUDGET],
        "run: runs/compute_matched/",
    ),
    "mambabyte export ckpt=runs/quickstart out=quickstart": ([], "parameters of step 2"),
    "mambabyte train --help": ([], "learning_rate: 0.002  # at its peak"),
    "mambabyte train experiment=pg19 --cfg job": ([], "max_steps: 80000"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    typed = [line for line in lines if line.startswith(("mambabyte ", "make "))]
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    return typed + [" ".join(text.split()) for text in re.findall(r"`(mambabyte [^`]+)`", prose)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make train` has run; what it would install is the interpreter of these tests."""
    folder = tmp_path_factory.mktemp("workplace")
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "mambabyte").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mambabyte "$@"\n')
    (binaries / "mambabyte").chmod(0o755)
    for name in ("Makefile", "README.md", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for installed in ("torch", "installed"):
        (folder / ".venv" / installed).touch()

    (folder / "notes").mkdir()
    (folder / "notes" / "diary.md").write_bytes(b"Dear diary, \xff\xfe again nothing happened.\n" * 40)
    (folder / "parquet_folder").mkdir()
    for split in ("train", "validation", "test"):
        table = pyarrow.table({"text": [f"{split} {n}: " + "Call me Ishmael. " * 40 for n in range(3)]})
        pyarrow.parquet.write_table(table, folder / "parquet_folder" / f"{split}-00000-of-00001.parquet")

    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MF"))}
    done = subprocess.run(
        [*shlex.split(MAKE_TRAIN), f"ARGS={' '.join(SMALL)}"],
        env={**inherited, "PYTHONPATH": str(ROOT)},
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "run: runs/quickstart" in done.stdout
    return folder


@pytest.fixture
def in_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))
    monkeypatch.setenv("HOME", str(workplace))  # of ~/notes
    monkeypatch.chdir(workplace)


def test_every_command_of_the_readme_is_run_here() -> None:
    assert set(commands()) == {MAKE_TRAIN, *COMMANDS}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("in_workplace")
def test_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    added, expected = COMMANDS[command]
    try:
        code = cli.main([*shlex.split(command)[1:], *added])
    except SystemExit as stop:  # Hydra's way to end --help
        code = stop.code or 0
    out, err = capsys.readouterr()
    assert code == 0, err
    assert expected in out + err


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.usefixtures("in_workplace")
def test_python_blocks() -> None:
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["summary"]["step"] == 20
    assert names["batch"]["bytes"].shape == (8, 256)
    assert names["logits"].shape == (1, 256)
    assert torch.isfinite(names["logits"]).all()
