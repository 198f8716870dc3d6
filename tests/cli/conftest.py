"""A command line whose tasks are fakes that record what reaches them, over small configuration groups."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import mambabyte.cli.main
import mambabyte.config.composition

GROUPS = {
    "model/small": "width: 128",
    "model/large": "width: 1024",
    "data/stdlib": "path: null",
    "data/files": "path: ???",
    "optimizer/adamw": "learning_rate: 1e-3",
    "trainer/default": "max_steps: 900\nprecision: fp32\ndevices: 1",
    "budget/none": "{}",
    "logger/csv": "{}",
    "callbacks/default": "{}",
    "experiment/quickstart": (
        "# @package _global_\ndefaults:\n  - override /model: large\nname: quickstart\nseed: 3"
    ),
    "experiment/plain": "# @package _global_\nname: plain",
}


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """The real primary configs over fake groups."""
    folder = tmp_path / "conf"
    folder.mkdir()
    for primary in mambabyte.config.composition.config_dir().glob("*.yaml"):
        shutil.copy(primary, folder)
    for name, text in GROUPS.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    return folder


@dataclass
class CommandLine:
    """Calls the command line in this process, from an empty folder, and remembers what the task was given."""

    capture: pytest.CaptureFixture[str]
    folder: Path
    behave: Callable[[DictConfig], Any] = lambda cfg: None
    jobs: list[dict[str, Any]] = field(default_factory=list)
    argv: list[list[str]] = field(default_factory=list)
    out: str = ""
    err: str = ""

    def run(self, cfg: DictConfig) -> Any:
        self.jobs.append(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        self.argv.append(list(sys.argv))
        return self.behave(cfg)

    def __call__(self, *argv: str) -> int:
        self.jobs.clear()
        self.argv.clear()
        self.capture.readouterr()
        try:
            return mambabyte.cli.main.main(argv)
        except SystemExit as exit:
            return int(exit.code or 0)
        finally:
            self.out, self.err = self.capture.readouterr()

    def complaint(self, *argv: str) -> str:
        """The one sentence that a faulty command line is answered with."""
        assert self(*argv) == 1
        assert self.jobs == []
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mambabyte: ")
        return lines[0].removeprefix("mambabyte: ")


@pytest.fixture
def cli(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    command_line = CommandLine(capsys, tmp_path / "here")
    command_line.folder.mkdir()
    monkeypatch.chdir(command_line.folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards: the command line sets it
    monkeypatch.setattr(sys, "argv", ["mambabyte"])
    monkeypatch.setattr(mambabyte.config.composition, "config_dir", lambda: conf)
    for module in mambabyte.cli.main.TASKS.values():
        fake = ModuleType(module)
        fake.run = command_line.run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module, fake)
    return command_line
