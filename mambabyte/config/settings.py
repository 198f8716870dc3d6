"""Typed settings: dataclasses whose fields are converted and checked whenever they are set.

Dataclasses and not pydantic: importing pydantic adds 0.2 s to every command, and its errors would have to be
translated, one by one, into sentences that a user of the command line can act on.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mambabyte.errors import UserError

T = TypeVar("T")
_RENAMED = {"output": "out", "output_dir": "out", "plot": "out"}  # what settings were called before
_FAR_BEYOND = 1000  # larger upper bounds only stop slips: they are not worth a word about another mistake


def setting(
    *,
    default: Any = MISSING,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    key: str | None = None,
) -> Any:
    """A field whose numbers must lie in a range. Null and text, where the type allows them, always pass.

    The upper bounds of sizes and counts lie far beyond all that is real: a number beyond them is a slip, and
    what would loop or allocate for it must not begin.

    Args:
        key: the setting's key below the section, where it is not the field's name; named in complaints.
    """
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"bounds": given, "key": key})


class Settings:
    """Base of the dataclasses that hold settings. Setting a field, in the constructor or later, converts the
    value to the field's type and checks its range.

    Types may be int, float (finite), bool, str, None, Path, Any, Literal, nested dataclasses, and unions,
    lists, tuples and dicts of these. Names that begin with an underscore are not settings: they are not
    checked.

    Attributes:
        section: the keys above the fields in the configuration, such as "trainer"; named in complaints.
        text_keys: keys of the section's YAML beside the fields that hold text.

    Raises:
        UserError: a value of another type or out of range.
    """

    section: ClassVar[str] = ""
    text_keys: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        known = {field.name: field for field in fields(self)}  # type: ignore[arg-type]
        if name not in known:
            raise UserError(f"there is no setting {_join(self.section, name)}{suggestion(name, known)}")
        object.__setattr__(self, name, _checked(value, type(self), known[name], self.section))


class TargetSettings(Settings):
    """Settings whose class the configuration names by ``_target_``: one of ours or one of the user's."""

    @classmethod
    def from_settings(cls, values: Any, where: str) -> TargetSettings:
        """The object that ``values`` describes; the hook that nested settings are made by.

        Raises:
            UserError: ``_target_`` is missing or no subclass of this one; see :func:`fill` for the rest.
        """
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise UserError(f"{where} must be a section of key: value, not {shown(values)}")
        target = values.get("_target_")
        if not isinstance(target, str):
            raise UserError(f"{where} needs a _target_: the class of its settings")
        found = find_class(target, f"{where}._target_")
        if not (issubclass(found, cls) and is_dataclass(found)):
            raise UserError(f"{where}._target_={target} is not a dataclass derived from {cls.__name__}")
        return fill(found, without_target(values), where)

    def to_dict(self) -> dict[str, Any]:
        """Plain YAML values, with the ``_target_`` that names this class."""
        values = {field.name: to_plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"_target_": self.target(), **values}

    @classmethod
    def target(cls) -> str:
        """The name that the configuration gives this class."""
        return f"{cls.__module__}.{cls.__qualname__}"


def find_class(path: str, where: str) -> type:
    """The class with a dotted path, its module imported.

    Raises:
        UserError: there is no such class, or its module cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}={path} cannot be imported ({error}); install its package, or set PYTHONPATH"
        ) from error
    if not isinstance(found, type):
        raise UserError(f"{where}={path} is not a class")
    return found


def fill(schema: type[T], values: Any, where: str | None = None) -> T:
    """The dataclass ``schema`` made from plain ``values``; absent keys take the field's default.

    Args:
        values: a mapping, as YAML gives it.
        where: the keys above the fields; the schema's ``section`` by default.

    Raises:
        UserError: an unknown or missing key, a value of another type or out of range.
    """
    where = getattr(schema, "section", "") if where is None else where
    if isinstance(values, schema):
        return values
    if not isinstance(values, Mapping):
        raise UserError(
            f"{where or 'the configuration'} must be a section of key: value, not {shown(values)}"
        )
    known = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(f"there is no setting {_join(where, key)}{suggestion(key, known)}")
    for key, field in known.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{_join(where, key)} is missing from the configuration")
    return schema(
        **{key: _checked(values[key], schema, field, where) for key, field in known.items() if key in values}
    )


def without_target(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section that names its class."""
    return {key: value for key, value in values.items() if key != "_target_"}


def to_plain(value: Any) -> Any:
    """Settings as plain YAML values: mappings, lists, numbers and text."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def suggestion(word: str, known: Iterable[Any]) -> str:
    """The end of a sentence about an unknown word: its new name, the nearest known one, else all of them."""
    choices = sorted(map(str, known))
    near = [name for name in choices if name.lstrip("-") == _RENAMED.get(str(word).lstrip("-"))]
    by_lower = {name.lower(): name for name in reversed(choices)}
    near = near or [by_lower[each] for each in difflib.get_close_matches(str(word).lower(), by_lower, n=1)]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; choose from {', '.join(choices)}" if choices else ""


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(item if isinstance(item, str) else shown(item) for item in value)}]"
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else repr(value)


@functools.cache
def _types(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _checked(value: Any, schema: type, field: dataclasses.Field, where: str) -> Any:
    where = _join(where, field.metadata.get("key") or field.name)
    value = _convert(value, _types(schema)[field.name], where)
    numbers = value if isinstance(value, (list, tuple)) else [value]
    bounds = field.metadata.get("bounds", {})
    for bound_name, bound in bounds.items():
        for number in filter(_is_number, numbers):
            inside = {
                "at least": number >= bound,
                "above": number > bound,
                "at most": number <= bound,
                "below": number < bound,
            }
            if not inside[bound_name]:
                named = {n: limit for n, limit in bounds.items() if n == bound_name or limit < _FAR_BEYOND}
                allowed = " and ".join(f"{name} {_limit(limit)}" for name, limit in named.items())
                allowed += ", or null" if NoneType in get_args(_types(schema)[field.name]) else ""
                raise UserError(f"{where} must be {allowed}, not {shown(value)}")
    return value


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(value, Real) and hasattr(value, "item"):
        value = value.item()  # NumPy's number as Python's
    if origin in (Union, UnionType):
        # The exact type first, so that in `int | float` 1.0 stays a float.
        for choice in sorted(inner, key=lambda choice: type(value) is not choice):
            try:
                return _convert(value, choice, where)
            except UserError:
                if is_dataclass(choice) and isinstance(value, Mapping):
                    raise
    elif hasattr(kind, "from_settings"):
        return kind.from_settings(value, where)
    elif is_dataclass(kind):
        return fill(kind, value, where)  # type: ignore[arg-type]
    elif kind is Any or (origin is Literal and value in inner):
        return value
    elif origin is list and isinstance(value, (list, tuple)):
        return [_convert(item, inner[0], f"{where}[{i}]") for i, item in enumerate(value)]
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(_convert(item, kinds[i], f"{where}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        return {key: _convert(item, inner[1], _join(where, key)) for key, item in value.items()}
    elif kind is int and _is_number(value) and (isinstance(value, int) or value.is_integer()):
        return int(value)
    elif kind is float and _is_number(value) and abs(value) <= sys.float_info.max:  # nan is not
        return float(value)
    elif kind is Path and value == "":
        raise UserError(f"{where} must be a path, and is empty")
    elif kind in (str, Path) and (isinstance(value, (str, kind)) or type(value) is int):
        return kind(str(value))  # not of 1.10, which would become 1.1
    elif kind in (bool, NoneType) and isinstance(value, kind):
        return value
    elif (origin or kind) not in (int, float, str, bool, Path, NoneType, Literal, list, tuple, dict):
        return value  # a type of the user's own class, which has to check it
    raise UserError(f"{where} must be {_described(kind)}, not {shown(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _limit(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _described(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_described(choice) for choice in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0]).lower()
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)} values"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    names |= {NoneType: "null", list: "a list", tuple: "a list"}
    return names.get(origin or kind, "a section of key: value")


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
