"""A command's flags, translated to overrides or to settings."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Any, NoReturn

from mambabyte.commands import Command, Flag
from mambabyte.config.overrides import as_meant, gathered, quoted
from mambabyte.config.settings import fill, suggestion
from mambabyte.errors import UserError

HYDRA_FLAGS = ("help", "cfg", "resolve", "package", "multirun", "config_dir", "info", "shell_completion")
_SWEEPING = ("launcher=", "+launcher=", "sweeper=", "+sweeper=", "hydra.mode=")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors.

    Attributes:
        settings: what is written as key=VALUE, and is no flag.
    """

    settings: Collection[str] = ()

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        known = [name for name in self._option_string_actions if name.startswith("--")]
        meant = suggestion(unknown[1], known) if unknown else ""
        nearest = meant if "did you mean" in meant else ""
        key = unknown[1][2:].replace("-", "_") if unknown else ""
        if unknown and key in self.settings:
            raise UserError(f"there is no flag {unknown[1]}: write {key}=VALUE")
        raise UserError(f"{message}{nearest}; see {self.prog} --help")


def command_parser(name: str, command: Command) -> Parser:
    """The parser of a command's words and flags, and of Hydra's flags where Hydra composes its settings."""
    composed = hasattr(command.settings, "yaml")
    words = command.words
    file = f" [{words.metavar}]" if words else ""
    usage = f"mambabyte {name}{file} [group=choice ...] [key=value ...] [options]" if composed else None
    parser = Parser(
        prog=f"mambabyte {name}",
        usage=usage,
        description=command.help,
        add_help=not composed,
        allow_abbrev=not composed,
    )
    if composed:
        parser.settings = {field.name for field in fields(command.settings)}
        help, metavar = (words.help, words.metavar) if words else (argparse.SUPPRESS, None)
        parser.add_argument("words", nargs="*", metavar=metavar, help=help)
    elif words is not None:
        parser.add_argument("words", nargs="+", metavar=words.metavar, help=words.help)
    groups: dict[str, Any] = {}
    shared = Counter(flag.key for flag in command.flags)
    for flag in command.flags:
        into: Any = parser
        if shared[flag.key] > 1 and not isinstance(flag.value, list):  # choices of one setting
            if flag.key not in groups:
                groups[flag.key] = parser.add_mutually_exclusive_group()
            into = groups[flag.key]
        names = [each for each in (flag.short, flag.flag) if each]
        into.add_argument(*names, help=_help(flag, composed), **_argument(flag, command.settings))
    if composed:
        parser.add_argument("-h", "--help", action="store_true", help="show options, groups and settings")
        parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"), help="print the configuration")
        parser.add_argument("--resolve", action="store_true", help="with --cfg, resolve interpolations")
        parser.add_argument("-p", "--package", metavar="KEY", help="with --cfg, only this part")
        parser.add_argument(
            "-m", "--multirun", action="store_true", help="run one job per value, as in seed=0,1,2"
        )
        parser.add_argument("-cd", "--config-dir", metavar="DIR", help="a folder of your own YAML")
        short_info = [] if any(flag.short == "-i" for flag in command.flags) else ["-i"]
        parser.add_argument(
            *short_info, "--info", choices=("config", "defaults", "searchpath"), help="how it is composed"
        )
        parser.add_argument("-sc", "--shell-completion", action="store_true", help=argparse.SUPPRESS)
    return parser


def hydra_arguments(name: str, command: Command, argv: list[str]) -> tuple[list[str], list[str]]:
    """The overrides and the flags for Hydra, in whatever order they were typed."""
    parser = command_parser(name, command)
    end = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_intermixed_args(argv[:end])
    overrides, words = _overrides_and_words(name, command, options.words, argv[end + 1 :])
    sweeping = options.multirun or any(each.startswith(_SWEEPING) for each in overrides)
    overrides = as_meant(overrides, command.settings, sweeping)
    given = _given(command, options, quoted)
    if command.words is not None and words:
        added = [command.words.group] if command.words.group else []
        added += [f"{command.words.key}={quoted(words[0])}"]
        taken = {each.partition("=")[0] for each in overrides} | given.keys()
        for key in (each.partition("=")[0] for each in added):
            if key in taken:
                which = f"'{words[0]}' is given as {command.words.metavar}"
                raise UserError(f"{which}, and {key} is set beside it: leave one out")
        overrides += added
    for key, value in given.items():
        if key in command.settings.repeated:  # type: ignore[attr-defined]
            overrides += [f"{key}={each}" for each in value]
            continue
        if isinstance(value, list):  # flags add to a list that is typed out
            typed = [each for each in overrides if re.fullmatch(rf"{key}=\[.*\]", each)]
            overrides = [each for each in overrides if each not in typed]
            items = [item.strip() for each in typed for item in each[len(key) + 2 : -1].split(",")]
            value = [*filter(None, items), *value]
        text = f"[{','.join(value)}]" if isinstance(value, list) else "true" if value is True else value
        overrides.append(f"{key}={text}")
    overrides = gathered(overrides, command.settings.repeated)  # type: ignore[attr-defined]
    flags = []
    for flag in HYDRA_FLAGS:
        value = getattr(options, flag)
        if value:
            word = f"--{flag.replace('_', '-')}"
            flags.append(word if value is True else f"{word}={value}")
    return overrides, flags


def _overrides_and_words(
    name: str, command: Command, typed: list[str], after_dashes: list[str]
) -> tuple[list[str], list[str]]:
    """The typed words that are overrides, and those that stand for themselves: what follows ``--``, what has
    no "=", and a file whose name has one."""
    if command.words is None:
        if after_dashes:
            raise UserError(f"mambabyte {name} takes no words after --; write key=value")
        return typed, []
    words = [each for each in typed if "=" not in each or _is_file(each, command.settings)]
    overrides = [each for each in typed if each not in words]
    words += after_dashes
    if len(words) > 1:
        raise UserError(f"mambabyte {name} takes one {command.words.metavar}, not {len(words)}: {words}")
    return overrides, words


def _is_file(word: str, schema: Any) -> bool:
    key = re.split(r"[.@=]", word.lstrip("+~"))[0]
    return key not in {"hydra", *(field.name for field in fields(schema))} and os.path.isfile(word)


def settings_from_flags(command: Command, options: argparse.Namespace) -> Any:
    """The settings of a command that needs no YAML."""
    words = {} if command.words is None else {command.words.key: options.words}
    return fill(command.settings, {**words, **_given(command, options, str)})


def _argument(flag: Flag, settings: Any) -> dict[str, Any]:
    if flag.metavar is None:
        return {"dest": _destination(flag), "action": "store_true"}
    action = "append" if flag.key in getattr(settings, "repeated", ()) else "store"
    return {"dest": _destination(flag), "action": action, "metavar": flag.metavar}


def _destination(flag: Flag) -> str:
    return flag.flag.lstrip("-").replace("-", "_")


def _help(flag: Flag, composed: bool) -> str:
    if not composed:
        return flag.help
    value = flag.metavar or str(flag.value).lower().replace("'", "")
    return f"{flag.help} ({flag.argument or flag.key}={value})"


def _given(command: Command, options: argparse.Namespace, quote: Callable[[str], str]) -> dict[str, Any]:
    """The settings that the given flags set, text as ``quote`` writes it."""
    values: dict[str, Any] = {}
    for flag in command.flags:
        found = getattr(options, _destination(flag))
        if found in (None, False):
            continue
        if isinstance(found, list):
            values[flag.key] = [quote(each) for each in found]
        elif flag.metavar is not None:
            values[flag.argument or flag.key] = found if flag.metavar == "N" else quote(found)
        if isinstance(flag.value, list):
            values.setdefault(flag.key, []).extend(flag.value)
        elif flag.metavar is None or flag.value is not True:
            values[flag.key] = flag.value
    return values
