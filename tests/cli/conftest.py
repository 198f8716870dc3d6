"""A command line whose commands record the settings that reach them, over small configuration groups."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import mambabyte.cli.main
import mambabyte.config.composition
from mambabyte import commands
from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import to_plain

GROUPS = {
    "model/small": "width: 128",
    "model/large": "width: 1024",
    "data/stdlib": "path: null",
    "data/files": "path: ???",
    "optimizer/adamw": "learning_rate: 1e-3",
    "trainer/default": "max_steps: 900\nprecision: fp32\ndevices: 1",
    "budget/none": "{}",
    "logger/csv": "{}",
    "lora/none": "# @package _global_\nlora: null",
    "callbacks/default": "evaluate_bytes: null",
    "sweeper/optuna": (
        "# @package _global_\ndefaults:\n  - override /hydra/sweeper: optuna\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper: {n_jobs: 1, max_failure_rate: 1.0, sampler: {seed: 0}}"
    ),
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


def fake(name: str, run: Callable[[Any], Any]) -> commands.Command:
    """A command with its real settings, except that groups may hold anything, and with ``run``."""
    command = commands.find(name)
    real = command.settings
    if not hasattr(real, "yaml"):
        return command
    kinds = get_type_hints(real)
    groups = {group.partition("/")[0] for group in GROUPS}
    fields = [
        (f.name, Any, None)
        if f.name in groups
        else (f.name, kinds[f.name], field(default=f.default, metadata=f.metadata))
        for f in dataclasses.fields(real)
    ]
    settings = dataclasses.make_dataclass(
        "Fake",
        fields,
        bases=(CommandSettings,),
        namespace={"yaml": real.yaml, "not_kept": real.not_kept, "repeated": real.repeated},
        kw_only=True,
    )
    return dataclasses.replace(command, settings=settings, run=run, check=lambda values: None)


@dataclass
class CommandLine:
    """Calls the command line in this process, from an empty folder, and remembers what it was given."""

    capture: pytest.CaptureFixture[str]
    folder: Path
    behave: Callable[[Any], Any] = lambda settings: None
    jobs: list[dict[str, Any]] = field(default_factory=list)
    argv: list[list[str]] = field(default_factory=list)
    out: str = ""
    err: str = ""

    def run(self, settings: Any) -> Any:
        plain = to_plain(settings)
        self.jobs.append({k: v for k, v in plain.items() if k != "data" or v is not None})
        self.argv.append(list(sys.argv))
        return self.behave(settings)

    def __call__(self, *argv: str) -> int:
        self.jobs.clear()
        self.argv.clear()
        self.capture.readouterr()
        try:
            return mambabyte.cli.main.main(argv, lambda name: fake(name, self.run))
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
    return command_line
