"""Overrides as people type them, in Hydra's grammar."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from mambabyte.errors import UserError

_PROMPTS = ("prompt", "callbacks.sample_prompt")  # for the model: no path, no quotation, no interpolation
# Groups of which Hydra would merge several choices into one that nobody has described.
ONE_CHOICE = (
    *(
        "model",
        "mixer",
        "data",
        "optimizer",
        "lora",
        "trainer",
        "callbacks",
        "budget",
        "experiment",
        "launcher",
        "sweeper",
    ),
)
_OF_A_PART = re.compile(r"data\.parts\.[^.]+\.[^.]+")  # a setting of a mixture's part


class Text(NamedTuple):
    """A setting that holds text or a path, and what else it may hold.

    place: whether a ~ at its start is the home folder.
    """

    null: bool
    list: bool
    place: bool


def text_settings(schema: Any, above: str = "") -> dict[str, Text]:
    """The settings of a dataclass that hold text, by their keys."""
    found = {
        f"{above}{key}": Text(null=True, list=key.endswith("path"), place=key != "name")
        for key in getattr(schema, "text_keys", ())
    }
    kinds = get_type_hints(schema)
    for field in fields(schema):
        kind = kinds[field.name]
        choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        lists = [each for each in choices if get_origin(each) is list]
        if {str, Path} & {*choices, *(item for each in lists for item in get_args(each))}:
            found[above + field.name] = Text(
                NoneType in choices, bool(lists), place=field.name not in ("name", "stop")
            )
        for choice in filter(is_dataclass, choices):
            found |= text_settings(choice, f"{above}{field.name}.")
    return found


def as_meant(overrides: Iterable[str], schema: Any, sweeping: bool = False) -> list[str]:
    """The overrides in Hydra's grammar. It reads 1.10 as a number, a comma as a sweep and quotes as syntax,
    but a setting that holds text gets the text that was typed. One that the schema names in `repeated` is a
    list of all that was typed for it.

    Hydra's own quotation ('...' around the whole) and interpolations still mean what they do in Hydra.

    Args:
        schema: the command's settings.
        sweeping: whether a comma separates the values of a sweep.

    Raises:
        UserError: several choices for a group that takes one, or a new setting of Hydra.
    """
    texts = text_settings(schema)
    return gathered([_as_meant(override, texts, sweeping) for override in overrides], schema.repeated)


def gathered(overrides: list[str], repeated: Iterable[str]) -> list[str]:
    """The overrides in Hydra's grammar, with one list for each of the `repeated` keys that stands there more
    than once."""
    for key in repeated:
        values = [each.partition("=")[2] for each in overrides if each.startswith(f"{key}=")]
        if len(values) > 1:
            items = filter(None, (value[1:-1] if value.startswith("[") else value for value in values))
            overrides = [each for each in overrides if not each.startswith(f"{key}=")]
            overrides.append(f"{key}=[{','.join(items)}]")
    return overrides


def _as_meant(override: str, texts: dict[str, Text], sweeping: bool) -> str:
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if key.startswith("+hydra."):  # Hydra would take it and read none of it
        raise UserError(f"there is no setting {name}; write a setting that Hydra has, without the +")
    if name in _PROMPTS and equals:
        return f"{key}={quoted(value)}"
    if name in ONE_CHOICE and value.startswith("["):
        raise UserError(f"{name} takes one choice, not {value}; add -m to run one job for each: {name}=a,b")
    if name == "logger" and re.fullmatch(r"\[\s*\]", value):
        raise UserError("logger=[] chooses none, and metrics.csv is written in any case: write logger=csv")
    if key == "+experiment":  # the defaults list names this group, so that it cannot be added
        return f"experiment={value}"
    if key == name and _OF_A_PART.fullmatch(name):  # which need not be written yet to have its default
        override = f"++{override}"
    if name in texts and equals:
        return f"{key}={_as_text(value, texts[name], sweeping)}"
    key, _, value = override.partition("=")
    return f"{key}={quoted(os.path.expanduser(value))}" if _below_home(value) else override


def _as_text(value: str, kind: Text, sweeping: bool) -> str:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    def each(values: str) -> str:
        return ",".join(_as_text(part.strip(), kind, False) for part in values.split(","))

    plain = r"[^\[\](){}'\"\\]*"
    if sweeping and "," in value and re.fullmatch(plain, value):
        return each(value)
    if kind.list and re.fullmatch(rf"\[{plain}\]", value):
        return f"[{each(value[1:-1])}]"
    if kind.place and _below_home(value):
        return quoted(os.path.expanduser(value))
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return quoted(value)
    read = override.value()
    hydras = (
        isinstance(override._value, QuotedString)
        or (read is None and kind.null)
        or (isinstance(read, list) and kind.list)
        or (override.is_sweep_override() and sweeping)
    )
    return value if hydras or read == value else quoted(value)


def _below_home(value: str) -> bool:
    return value == "~" or value.startswith("~/")


def quoted(text: str) -> str:
    """``text`` as a value in Hydra's override grammar, so that every character is taken literally."""
    # A backslash counts only before a quote or the end, and before OmegaConf's ${.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"
