"""A mistake in a configuration as one sentence that says what to do."""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mambabyte.config.overrides import ONE_CHOICE, quoted
from mambabyte.config.settings import suggestion
from mambabyte.errors import UserError

if TYPE_CHECKING:
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError


def explain(fault: BaseException, overrides: Iterable[str] = ()) -> UserError | None:
    """What Hydra, OmegaConf or YAML complain of, as one sentence; None for any other exception.

    Args:
        overrides: those of the command line, one of which may be to blame.
    """
    from hydra import errors as hydra
    from omegaconf import errors as omegaconf
    from yaml import YAMLError

    cause = fault.__cause__
    if isinstance(fault, UserError):
        return fault
    if isinstance(fault, hydra.InstantiationException):
        return explain(cause, overrides) if cause else None
    if isinstance(fault, hydra.OverrideParseException):
        return _misread_override(fault.override)
    if isinstance(fault, hydra.MissingConfigException):
        return _missing_file(fault.missing_cfg_file or "", fault.options or (), str(fault))
    if isinstance(fault, omegaconf.MissingMandatoryValue) and fault.full_key:
        return UserError(f"{fault.full_key} is not set; add {fault.full_key}=VALUE")
    if isinstance(fault, hydra.HydraException):
        return _refused_override(str(fault), cause)
    if isinstance(fault, (omegaconf.ConfigAttributeError, omegaconf.ConfigKeyError)) and fault.full_key:
        return _unknown_key(fault)
    if isinstance(fault, omegaconf.OmegaConfBaseException):
        unset = re.search(r"Environment variable '(\w+)' not found", str(fault))
        if unset and fault.full_key:
            return UserError(
                f"{fault.full_key} comes from the environment variable {unset[1]}, which is not set here; "
                f"set it, or give {fault.full_key}=VALUE"
            )
        unknown = re.match(r"Interpolation key '(.*?)' not found", str(fault))
        if unknown:
            return _unknown_interpolation(unknown[1], fault.full_key, overrides)
        key = fault.full_key or ""
        where = f" (at {key})" if key and not key.startswith("hydra.") else ""
        return UserError(_first_line(fault.msg or str(fault)) + where)
    if isinstance(fault, ValueError) and _raised_inside(fault, ("hydra.", "optuna.")):
        return UserError(_first_line(str(fault)))
    if isinstance(fault, YAMLError):
        return UserError("cannot read a YAML file: " + " ".join(str(fault).split()))
    return None


def _raised_inside(fault: BaseException, packages: tuple[str, ...]) -> bool:
    frames = list(traceback.walk_tb(fault.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").startswith(packages)


def _misread_override(override: str) -> UserError:
    if "=" not in override:
        return UserError(f"cannot read '{override}'; write key=value")
    key, _, value = override.partition("=")
    whole = shlex.quote(f"{key}={quoted(value)}")
    return UserError(f"cannot read '{override}'; quote the value, and for the shell the whole: {whole}")


def _unknown_interpolation(key: str, place: str | None, overrides: Iterable[str]) -> UserError:
    reference = f"${{{key}}}"
    found = next((each for each in overrides if reference in each), f"{place or 'KEY'}={reference}")
    literal = shlex.quote(found.replace("${", "\\${"))
    return UserError(
        f"{found} refers to a setting {key}, which there is not; for the characters ${{ write {literal}"
    )


def _missing_file(path: str, options: Iterable[str], message: str) -> UserError:
    group, _, choice = path.rpartition("/")
    for kind, name, extra in (("launcher", "submitit", "slurm"), ("sweeper", "optuna", "sweep")):
        if group == f"hydra/{kind}" and choice.startswith(name):
            return UserError(
                f"{kind}={choice} needs packages that are missing: pip install 'mambabyte[{extra}]'"
            )
    if group:
        return UserError(f"there is no {group} '{choice}'" + suggestion(choice, options))
    return UserError(_first_line(message))


def _unknown_key(fault: ConfigAttributeError | ConfigKeyError) -> UserError:
    siblings = fault.parent_node if isinstance(fault.parent_node, Mapping) else {}
    known = [key for key in siblings if key not in ("hydra", "_target_")]
    section = str(fault.full_key).rpartition(".")[0]
    if section and not known:  # of a group whose choice is none
        return UserError(f"there is no setting {fault.full_key} yet: choose {section}= too")
    if fault.full_key == "data":  # the group that some commands leave at null
        return UserError("settings such as data.path need a choice of data first: add one, as in data=files")
    return UserError(f"there is no setting {fault.full_key}" + suggestion(str(fault.key), known))


def _refused_override(message: str, cause: BaseException | None) -> UserError:
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        return _unknown_key(cause)
    added = re.search(r"already at '(.*)'|^(.*) appears more than once", message)
    if added:
        return UserError(f"{added[1] or added[2]} is set already; write it without the +")
    ambiguous = re.match(r"Ambiguous value for argument '(.*?)=(.*)'", message)
    if ambiguous:
        key, value = ambiguous.groups()
        if key in ONE_CHOICE:
            return UserError(f"{key} takes one choice, not {value}: add -m to run one job for each")
        return UserError(
            f"{key}={value} holds a comma; write {shlex.quote(f'{key}=[{value}]')} for a list, "
            f"{shlex.quote(f'{key}={quoted(value)}')} for text, "
            "or add -m to run one job for each"
        )
    parts = [_first_line(message), _first_line(str(cause)) if cause else ""]
    if parts[1].startswith("Incompatible key type 'NoneType'"):
        override = parts[0].removeprefix("Error merging override ")
        return UserError(f"{override} has null as a key: choose another name")
    return UserError(": ".join(part for part in parts if part))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else ""
