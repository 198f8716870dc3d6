"""The commands in the pages of docs/: each has settings that the command line takes, jobs of sweeps too.

They are composed and checked, not run; README.md's are run by test_readme.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mambabyte.cli.flags import command_parser, hydra_arguments
from mambabyte.commands import NAMES, find

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "data" / "README.md"])
# an extra, a file that is not there, what Hydra answers, and what a reader fills in
ELSEWHERE = ("launcher=submitit", "FILE", "--cfg", "…")


def commands(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    return re.findall(r"^(?:.* \| )?mambabyte (.+?)(?: >> .*)?$", blocks.replace("\\\n", " "), re.MULTILINE)


TYPED = [
    pytest.param(typed, id=f"{page.stem}: {typed}")
    for page in PAGES
    for typed in commands(page)
    if not any(part in typed for part in ELSEWHERE)
]


def jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of a sweep's jobs, so many that each value is in one of them."""
    choices: list[list[str]] = []
    for each in OverridesParser.create().parse_overrides(overrides):
        if not each.is_sweep_override():
            choices.append([str(each.input_line)])
        elif each.is_discrete_sweep():  # else it is a range, which has no values to name
            choices.append([f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()])
    return [
        [each[min(job, len(each) - 1)] for each in choices]
        for job in range(max(map(len, choices), default=1))
    ]


@pytest.mark.parametrize("typed", TYPED)
def test_its_settings_are_taken(typed: str) -> None:
    words = shlex.split(typed, comments=True)
    name = next(name for name in NAMES if words[: len(name.split())] == name.split())
    command = find(name)
    arguments = words[len(name.split()) :]
    if not hasattr(command.settings, "yaml"):
        command_parser(name, command).parse_intermixed_args(arguments)
        return
    overrides, _ = hydra_arguments(name, command, arguments)
    for job in jobs(overrides):
        command.settings.from_composed(*command.settings.compose_yaml(job))


def test_the_pages_have_commands() -> None:
    assert len(TYPED) > 60
