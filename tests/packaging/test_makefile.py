"""What each Makefile target runs, recorded by a stand-in for Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
  "$FAIL"*) [ -n "$FAIL" ] && exit 1 ;;
esac
case "$*" in
  "-m venv .venv")
    mkdir -p .venv/bin
    for name in python mambabyte ruff mypy; do cp "$0" .venv/bin/$name; done ;;
esac
exit 0
"""

PIP = "-m pip --disable-pip-version-check install --quiet -c constraints.txt"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


class Make:
    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        for name in ("Makefile", "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        (folder / "stand-in").write_text(STAND_IN)
        (folder / "stand-in").chmod(0o755)

    def __call__(self, *arguments: str, fail: str = "") -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        # Under `make test`, keep the outer make's settings out of this one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MF"))}
        return subprocess.run(
            ["make", "PYTHON=./stand-in", *arguments],
            env={**inherited, "LOG": str(self.log), "FAIL": fail or "nothing"},
            cwd=self.folder, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().replace("--disable-pip-version-check ", "").splitlines()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return Make(tmp_path)


def test_help_names_every_target(make):
    done = make("help")
    assert done.returncode == 0
    for target in (
        "train",
        "test",
        "lint",
        "lineage",
        "wheel",
        "lock",
        "audit",
        "clean",
        "gpu-check",
        "gpu-check-dry",
    ):
        assert f"make {target} " in done.stdout


def test_train_installs_torch_first_and_once(make):
    assert make("train").returncode == 0
    assert make.calls[1:] == [
        "stand-in -m venv .venv",
        "python -m pip install --quiet -c constraints.txt torch",
        "python -m pip install --quiet -c constraints.txt --editable .",
        "mambabyte train experiment=quickstart",
    ]
    assert make("train", "ARGS=seed=1 name=second").returncode == 0
    assert make.calls == ["mambabyte train experiment=quickstart seed=1 name=second"]


def test_train_says_what_it_installs_while_it_does(make):
    assert make("train", "TORCH_INDEX=file:///wheels").stdout.splitlines() == [
        "make: installing torch into .venv (up to several GB, minutes) from file:///wheels",
        "make: installing mambabyte and its other dependencies",
        ".venv/bin/mambabyte train experiment=quickstart ",
    ]
    assert make("train").stdout.splitlines() == [".venv/bin/mambabyte train experiment=quickstart "]


def test_torch_comes_from_the_index_that_is_given(make):
    assert make("train", "TORCH_INDEX=file:///wheels").returncode == 0
    assert (
        make.calls[2] == "python -m pip install --quiet --index-url file:///wheels -c constraints.txt torch"
    )


def test_test_installs_the_development_tools_then_lints_and_tests(make):
    assert make("test").returncode == 0
    assert make.calls[-5:] == [
        "python -m pip install --quiet -c constraints.txt --editable .[dev]",
        "ruff check .",
        "ruff format --check .",
        "mypy ",
        "python -m pytest -q -n auto --dist loadfile",
    ]
    for fail in ("check", "format", "-m pytest"):
        assert make("test", fail=fail).returncode != 0


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("-c import sys", "needs Python 3.10 to 3.13"),
        ("-m venv", "cannot make a virtual environment"),
        (f"{PIP} torch", "torch could not be installed"),
        (f"{PIP} --editable", "dependencies could not"),
    ],
)
def test_a_failed_installation_is_explained_and_tried_again(make, fail, message):
    done = make("train", fail=fail)
    assert done.returncode != 0
    assert message in done.stderr
    assert "mambabyte train experiment=quickstart" not in make.calls
    assert make("train").returncode == 0
    assert make.calls[-1] == "mambabyte train experiment=quickstart"


def test_lineage_builds_the_page_with_the_development_tools(make):
    assert make("lineage", "ARGS=ckpt=runs/quickstart").returncode == 0
    assert make.calls[-2].endswith("--editable .[dev]")
    assert make.calls[-1] == "mambabyte lineage ckpt=runs/quickstart"


def test_audit_installs_its_tools_and_runs(make):
    assert make("audit").returncode == 0
    assert make.calls[-2:] == [
        "python -m pip install --quiet -c constraints.txt --editable .[release]",
        "python docker/audit.py",
    ]


def test_gpu_check_installs_nothing(make):
    assert make("gpu-check", "ARGS=--seconds 60").returncode == 0
    assert make.calls == ["stand-in benchmarks/gpu/check.py --seconds 60"]


def test_the_dry_gpu_check_runs_in_the_environment_of_development(make):
    assert make("gpu-check-dry").returncode == 0
    assert make.calls[-2].endswith("--editable .[dev]")
    assert make.calls[-1] == "python benchmarks/gpu/check.py --dry"


def test_continuous_integration_runs_make_test_in_the_checkout(tmp_path):
    (tmp_path / "make").write_text('#!/bin/sh\necho "$PWD: make $*"\n')
    (tmp_path / "make").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / ".ci" / "run"], env={**os.environ, "PATH": path}, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{ROOT}: make test\n")
