"""The commands, a file each: settings, flags, help line and ``run``. Importing one imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

NAMES = (
    *("train", "eval", "generate", "drafter", "serve", "compress", "decompress", "export"),
    *("data prepare", "data inspect", "report", "lineage", "doctor"),
)


class Flag(NamedTuple):
    """A flag that sets a setting.

    value: what it sets the setting ``key`` to; the items of lists are collected from all flags given. True
        beside a ``metavar`` sets nothing.
    metavar: the name of its argument, if it takes one, which the setting ``argument`` gets, or else ``key``.
    """

    flag: str
    help: str
    key: str
    value: Any = True
    metavar: str | None = None
    short: str | None = None
    argument: str | None = None


class Words(NamedTuple):
    """The setting that positional arguments fill.

    group: the choice of a group that has the setting, such as "data=files".
    """

    key: str
    metavar: str
    help: str
    group: str | None = None


@dataclass(frozen=True)
class Command:
    """One command.

    settings: the dataclass that ``run`` takes. Hydra composes one with a ``yaml`` from conf/; any other is
        filled from flags and words alone.
    run: does the work. Of a command that Hydra composes, it returns what a search among the jobs of a sweep
        minimises, if anything; of any other the exit code, None for 0.
    check: refuses what it can of the composed values before ``settings`` takes them, which may import torch.
    """

    help: str
    settings: type
    run: Callable[[Any], float | None]
    flags: tuple[Flag, ...] = ()
    words: Words | None = None
    check: Callable[[dict[str, Any]], None] = lambda values: None


CKPT = Flag("--ckpt", "a run, a checkpoint, a model's folder or hub:owner/name", "ckpt", metavar="PATH")
DATA = Flag(
    *("--data", "your own files: a file, a folder or a glob", "data", "files"),
    metavar="PATH",
    argument="data.path",
)
OUT = Flag("--out", "where to write", "out", metavar="PATH", short="-o")
JSON = Flag("--json", "print one JSON object", "json")


def find(name: str) -> Command:
    """The command called ``name``, one of ``NAMES``."""
    return import_module(f"{__name__}.{name.replace(' ', '_')}").COMMAND
