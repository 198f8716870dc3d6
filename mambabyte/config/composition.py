"""Where the YAML lives, how a section becomes a typed object, and how a mistake becomes one sentence."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mambabyte.errors import UserError
from mambabyte.runtime.secrets import refuse_secrets

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

T = TypeVar("T")


@dataclass
class TrainSettings:
    """The keys of conf/train.yaml that are no group."""

    name: str
    seed: int
    context_length: int
    run_dir: str
    dry_run: bool
    json: bool


@dataclass
class EvalSettings:
    """The keys of conf/eval.yaml that are no group."""

    ckpt: str
    split: Literal["train", "validation", "test"]
    protocol: Literal["disjoint", "sliding", "stateful"]
    context_length: int | None
    stride: int | None
    batch_size: int
    precision: Literal["fp32", "bf16"]
    max_bytes: int | None
    device: str
    json: bool
    metrics: list[str]
    prove: bool
    show: int
    samples: int
    sample_bytes: int
    output_dir: str
    save_every: float


@dataclass
class CompressSettings:
    """The keys of conf/compress.yaml."""

    ckpt: str
    file: str
    output: str | None
    lanes: int | None
    threads: int
    device: str


@dataclass
class DecompressSettings:
    """The keys of conf/decompress.yaml."""

    ckpt: str
    file: str
    output: str | None
    device: str


@dataclass
class GenerateSettings:
    """The keys of conf/generate.yaml."""

    ckpt: str
    prompt: str
    bytes: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    device: str


@dataclass
class ExportSettings:
    """The keys of conf/export.yaml."""

    ckpt: str
    out: str


@dataclass
class DataPrepareSettings:
    """The keys of conf/data_prepare.yaml that are no group."""

    split: Literal["train", "validation", "test", "all"]
    json: bool


@dataclass
class DataInspectSettings:
    """The keys of conf/data_inspect.yaml that are no group."""

    split: Literal["train", "validation", "test"]
    max_bytes: int | None
    context_length: int
    samples: int
    seed: int
    plot: str | None
    json: bool


SETTINGS = {
    "train": TrainSettings,
    "eval": EvalSettings,
    "generate": GenerateSettings,
    "compress": CompressSettings,
    "decompress": DecompressSettings,
    "export": ExportSettings,
    "data prepare": DataPrepareSettings,
    "data inspect": DataInspectSettings,
}


def config_dir() -> Path:
    """The folder of the YAML: inside the package in a wheel, beside it in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def check_settings(command: str, cfg: DictConfig) -> None:
    """Raises UserError where a key of the command's primary config is missing or of the wrong type, and where
    any key but the prompt, which is kept nowhere, holds a secret."""
    from omegaconf import OmegaConf

    schema = SETTINGS[command]
    typed(OmegaConf.masked_copy(cfg, [field.name for field in fields(schema)]), schema)
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    refuse_secrets({key: value for key, value in values.items() if key != "prompt"})


def typed(section: DictConfig, schema: type[T]) -> T:
    """The dataclass ``schema`` filled from ``section``, interpolations resolved, absent keys defaulted.

    Types may be int, float, bool, str, None, Path, Any, Literal, nested dataclasses, and unions, lists,
    tuples and dicts of these. Raises UserError on an unknown or missing key and on a value of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(section, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as fault:
        raise (explain(fault) or fault) from None
    return _fill(schema, values, section._get_full_key(None))


def _fill(schema: type[T], values: Any, where: str) -> T:
    if not isinstance(values, Mapping):
        raise UserError(
            f"{where or 'the configuration'} must be a section of key: value, not {_shown(values)}"
        )
    known = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    for key in values:
        if key not in known and key != "_target_":
            raise UserError(f"there is no setting {_join(where, key)}{suggestion(key, known)}")
    for key, field in known.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{_join(where, key)} is missing from the configuration")
    types = get_type_hints(schema)
    return schema(
        **{key: _convert(values[key], types[key], _join(where, key)) for key in known if key in values}
    )


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        # The exact type first, so that in `int | float` 1.0 stays a float.
        for choice in sorted(inner, key=lambda choice: type(value) is not choice):
            try:
                return _convert(value, choice, where)
            except UserError:
                if is_dataclass(choice) and isinstance(value, Mapping):
                    raise
    elif is_dataclass(kind):
        return _fill(kind, value, where)  # type: ignore[arg-type]
    elif kind is Any or (origin is Literal and value in inner):
        return value
    elif origin is list and isinstance(value, list):
        return [_convert(item, inner[0], f"{where}[{i}]") for i, item in enumerate(value)]
    elif origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(_convert(item, kinds[i], f"{where}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {key: _convert(item, inner[1], _join(where, key)) for key, item in value.items()}
    elif kind is int and _is_number(value) and float(value).is_integer():
        return int(value)
    elif kind is float and _is_number(value):
        return float(value)
    elif kind in (str, Path) and (isinstance(value, str) or _is_number(value)):
        return kind(str(value))
    elif kind in (bool, NoneType) and isinstance(value, kind):
        return value
    raise UserError(f"{where} must be {_described(kind)}, not {_shown(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _described(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_described(choice) for choice in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)} values"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    names |= {NoneType: "null", list: "a list", tuple: "a list"}
    return names.get(origin or kind, "a section of key: value")


def _shown(value: Any) -> str:
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else repr(value)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def suggestion(word: str, known: Iterable[Any]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, else all of them."""
    choices = sorted(map(str, known))
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; choose from {', '.join(choices)}" if choices else ""


def explain(fault: BaseException) -> UserError | None:
    """What Hydra, OmegaConf or YAML complain of, as one sentence; None for any other exception."""
    from hydra.errors import (
        HydraException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import (
        ConfigAttributeError,
        ConfigKeyError,
        MissingMandatoryValue,
        OmegaConfBaseException,
    )
    from yaml import YAMLError

    cause = fault.__cause__
    if isinstance(fault, UserError):
        return fault
    if isinstance(fault, InstantiationException):
        return explain(cause) if cause else None
    if isinstance(fault, OverrideParseException):
        return _misread_override(fault.override)
    if isinstance(fault, MissingConfigException):
        return _missing_file(fault.missing_cfg_file or "", fault.options or (), str(fault))
    if isinstance(fault, MissingMandatoryValue) and fault.full_key:
        return UserError(f"{fault.full_key} is not set; add {fault.full_key}=VALUE")
    if isinstance(fault, HydraException):
        return _refused_override(str(fault), cause)
    if isinstance(fault, (ConfigAttributeError, ConfigKeyError)) and fault.full_key:
        return _unknown_key(fault)
    if isinstance(fault, OmegaConfBaseException):
        unset = re.search(r"Environment variable '(\w+)' not found", str(fault))
        if unset and fault.full_key:
            return UserError(
                f"{fault.full_key} comes from the environment variable {unset[1]}, which is not set here; "
                f"set it, or give {fault.full_key}=VALUE"
            )
        where = (
            f" (at {fault.full_key})" if fault.full_key and not fault.full_key.startswith("hydra.") else ""
        )
        return UserError(_first_line(fault.msg or str(fault)) + where)
    if isinstance(fault, ValueError) and _raised_inside(fault, "hydra"):
        return UserError(_first_line(str(fault)))
    if isinstance(fault, YAMLError):
        return UserError("cannot read a YAML file: " + " ".join(str(fault).split()))
    return None


def _raised_inside(fault: BaseException, package: str) -> bool:
    frames = list(traceback.walk_tb(fault.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").startswith(package + ".")


def _misread_override(override: str) -> UserError:
    if "=" not in override:
        return UserError(f"cannot read '{override}'; write key=value")
    key, _, value = override.partition("=")
    return UserError(
        f"cannot read '{override}'; quote the value, and for the shell the whole: \"{key}='{value}'\""
    )


def _missing_file(path: str, options: Iterable[str], message: str) -> UserError:
    group, _, choice = path.rpartition("/")
    if group == "hydra/launcher" and choice.startswith("submitit"):
        return UserError(
            f"launcher={choice} needs packages that are not here: pip install 'mambabyte[slurm]'"
        )
    if group:
        return UserError(f"there is no {group} '{choice}'" + suggestion(choice, options))
    return UserError(_first_line(message))


def _unknown_key(fault: ConfigAttributeError | ConfigKeyError) -> UserError:
    siblings = fault.parent_node if isinstance(fault.parent_node, Mapping) else {}
    known = [key for key in siblings if key != "hydra"]
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
        return UserError(
            f"{key}={value} holds a comma; write {key}=[{value}] for a list, \"{key}='{value}'\" for text, "
            "or add -m to run one job for each"
        )
    parts = [_first_line(message), _first_line(str(cause)) if cause else ""]
    return UserError(": ".join(part for part in parts if part))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else ""
