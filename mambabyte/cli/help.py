"""The help of one command: its groups and settings, each with the comment that its YAML has beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_LINE = re.compile(r"( *)([\w.]+):(?: |$)")
_GROUP = re.compile(r" *- (?:override /)?(\w+): ")
_PACKAGE = re.compile(r"# @package ([a-z][\w.]*)\n")  # where a group's files stand, if not below its name
_COMMENT = re.compile(r"\s#\s*(.*)$")


def describe_settings(settings: Any, overrides: list[str], config_dir: str | None) -> str:
    """The groups and the settings of a command, with these overrides.

    Args:
        settings: the command's class of settings. config_dir: a folder of the user's own YAML, if any.

    Raises:
        UserError: an override that cannot be obeyed.
    """
    from omegaconf import OmegaConf

    from mambabyte.config import composition

    folders = [composition.config_dir(), *([Path(config_dir)] if config_dir else [])]
    composed, choices = settings.compose_yaml(overrides, folders[1:])
    comments = _comments(folders, settings.yaml, choices)
    listed = []
    for group in sorted(choices):
        files = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        about = f"  # {comments[group]}" if group in comments else ""
        listed.append(f"  {group}: {', '.join(files)}{about}")
    lines = []
    for path, line in _walk(OmegaConf.to_yaml(composed)):
        comment = comments.get(path)
        lines.append(f"  {line}  # {comment}" if comment else f"  {line}")
    groups = ["Groups (group=choice):", *listed, ""] if listed else []
    return "\n".join([*groups, "Settings (key=value):", *lines])


def _comments(folders: list[Path], primary: str, choices: dict[str, str]) -> dict[str, str]:
    """What the YAML says of each setting: a group's chosen file first, then its parents."""
    found: dict[str, str] = {}
    for group, choice in {"": primary, **choices}.items():
        for text in _inherited(folders, group, choice):
            package = _PACKAGE.match(text)
            above = package[1] if package else group
            for path, line in _walk(text):
                comment = _COMMENT.search(line)
                if comment and not group and (listed := _GROUP.match(line)):
                    found[listed[1]] = comment[1]  # of a group, in the list of defaults
                elif path and comment:
                    found.setdefault(f"{above}.{path}" if above else path, comment[1])
    return found


def _inherited(folders: list[Path], group: str, choice: str) -> Iterator[str]:
    """The text of a group's file, then of the files of the group in its defaults list."""
    file = next((f for folder in folders if (f := folder / group / f"{choice}.yaml").is_file()), None)
    if file is not None:
        text = file.read_text(encoding="utf-8")
        yield text
        for parent in (yaml.safe_load(text) or {}).get("defaults", []) if group else []:
            if isinstance(parent, str) and parent != "_self_":
                yield from _inherited(folders, group, parent.partition("@")[0])


def _walk(text: str) -> Iterator[tuple[str, str]]:
    """(dotted key, line) for each line of a YAML file; the key is empty where the line has none."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            indent = len(match[1])
            above = [each for each in above if each[0] < indent] + [(indent, match[2])]
        yield ".".join(key for _, key in above) if match else "", line
