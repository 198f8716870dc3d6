"""Hydra's YAML composed and turned into typed settings, once, at the edge of the program."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from mambabyte.config.explanations import explain
from mambabyte.config.overrides import as_meant
from mambabyte.config.settings import Settings, fill, suggestion
from mambabyte.errors import UserError
from mambabyte.runtime.secrets import refuse_secrets

C = TypeVar("C", bound="CommandSettings")


def config_dir() -> Path:
    """The folder of the YAML: inside the package in a wheel, beside it in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


class CommandSettings(Settings):
    """The settings of one command, with the defaults of its YAML.

    Attributes:
        yaml: the file in conf/, without its suffix, that composes them.
        not_kept: keys that may hold a secret, since nothing keeps or logs them.
        repeated: keys that may be given several times, for a list of values.
    """

    yaml: ClassVar[str]
    not_kept: ClassVar[tuple[str, ...]] = ()
    repeated: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def compose(cls: type[C], *overrides: str) -> C:
        """The settings that the command line would have with these overrides, such as "data=files".

        Raises:
            UserError: an override that cannot be read or obeyed.
        """
        return cls.from_composed(*cls.compose_yaml(as_meant(overrides, cls)))

    @classmethod
    def compose_yaml(
        cls, overrides: Iterable[str], more_folders: Iterable[Path] = ()
    ) -> tuple[Any, dict[str, str]]:
        """What Hydra composes of overrides in its grammar, not yet checked, and the choice of each group;
        raises as :meth:`compose`."""
        from hydra import compose, initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra
        from omegaconf import OmegaConf, open_dict

        searched = ",".join(f"file://{folder.absolute()}" for folder in more_folders)
        added = [f"hydra.searchpath=[{searched}]"] if searched else []
        outer = GlobalHydra.instance().hydra  # of a Hydra program that this may run in
        GlobalHydra.instance().hydra = None
        try:
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                composed = compose(cls.yaml, [*overrides, *added], return_hydra_config=True)
        except Exception as fault:
            raise (explain(fault) or fault) from None
        finally:
            GlobalHydra.instance().hydra = outer
        choices: Any = OmegaConf.to_container(composed.hydra.runtime.choices)
        with open_dict(composed):
            del composed.hydra
        return composed, {str(g): str(c) for g, c in choices.items() if not g.startswith("hydra/")}

    @classmethod
    def from_composed(
        cls: type[C],
        composed: Any,
        choices: Mapping[str, str],
        check: Callable[[dict[str, Any]], None] = lambda values: None,
    ) -> C:
        """The settings in an OmegaConf configuration that Hydra composed of these ``choices`` of its groups.

        Args:
            check: called with the plain values before the settings take them, which may import torch.

        Raises:
            UserError: an unknown or missing key, a wrong value, or a secret that a run would keep.
        """
        _refuse_unread(cls, composed, choices)
        values = plain(composed)
        if "data" in values and os.environ.get("MAMBABYTE_DATA") == "":
            raise UserError("the environment variable MAMBABYTE_DATA is empty: unset it, or name a folder")
        refuse_secrets({key: value for key, value in values.items() if key not in cls.not_kept})
        check(values)
        return fill(cls, values)


def _refuse_unread(schema: Any, composed: Any, choices: Mapping[str, str]) -> None:
    """Raise UserError about a key beside a section's fields that is no short name: neither one of the chosen
    file's nor, for files of the user's own, one that an interpolation reads."""
    from omegaconf import OmegaConf

    written: Any = OmegaConf.to_container(composed)
    read = set(_interpolated(written))
    for name, kind in get_type_hints(schema).items():
        section = next((each for each in (kind, *get_args(kind)) if getattr(each, "text_keys", ())), None)
        if section is None or not isinstance(written.get(name), dict):
            continue
        known = {field.name for field in fields(section)} | _short_names(name, choices.get(name))
        known |= {key for key in written[name] if (name, str(key)) in read}
        for key in written[name].keys() - known:
            raise UserError(f"there is no setting {name}.{key}{suggestion(key, known)}")


def _short_names(group: str, choice: str | None) -> set[str]:
    """The keys in the YAML of a group's choice and in what that file builds on, if the program has it."""
    import yaml

    file = config_dir() / group / f"{choice}.yaml"
    written = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
    parents = [each for each in written.pop("defaults", []) if isinstance(each, str) and each != "_self_"]
    return set(written).union(*(_short_names(group, parent) for parent in parents))


def _interpolated(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The section and the key in it of each ``${...}`` in ``value``, which stands at ``place``."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _interpolated(inner, (*place, str(key)))
        return
    for dots, key in re.findall(r"\$\{(\.*)([\w.]+)\}", str(value)):
        above = place[: len(place) - len(dots)] if dots else ()
        yield (*above, *key.split("."))[:2]


def plain(composed: Any) -> dict[str, Any]:
    """An OmegaConf configuration as plain values, interpolations resolved; UserError if one cannot be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as fault:
        raise (explain(fault) or fault) from None


def instantiate(description: Mapping[str, Any], where: str) -> Any:
    """The object that ``_target_`` in ``description`` names, called with the other keys.

    Raises:
        UserError: it cannot be found, or refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    target = description.get("_target_") if isinstance(description, Mapping) else None
    if not isinstance(target, str):
        raise UserError(f"{where} needs a _target_: the class to build")
    try:
        return instantiate(dict(description), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{where} cannot be built from {target}: {reason}") from error
