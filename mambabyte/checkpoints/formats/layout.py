"""Which files of a folder hold a model: its config.json, and its weights in one file or in shards."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from mambabyte.errors import UserError

CONFIG = "config.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"  # of peft
_WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, PICKLE, PICKLE + INDEX)  # in transformers' order
_LARGEST_JSON = 1 << 26  # bytes


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` is a folder of one model, ours or another program's."""
    return (path / CONFIG).is_file()


def refuse_adapters(where: object) -> NoReturn:
    """Raise the UserError about adapters in the place of a model."""
    raise UserError(
        f"'{where}' holds adapters of peft without the model that they belong to: put them into that, as the "
        "README.md beside them and docs/checkpoints.md show, and save it by mambabyte.save"
    )


def weights_file(names: Collection[str]) -> str | None:
    """The file, or the index of the shards, that is read of those in a folder."""
    return next((name for name in _WEIGHTS if name in names), None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that may come from a stranger.

    Raises:
        UserError: it is damaged, no object, or larger than any config is.
    """
    try:
        check_file(path)
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError("it is too large")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged or no config: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is damaged or no config: it holds no JSON object")
    return value


def shards(index: Path) -> dict[str, list[str]]:
    """The names of the tensors in each shard, by the shard's file name.

    Raises:
        UserError: the index is damaged, or names files outside its folder.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise UserError(f"'{index}' is damaged: it has no weight_map")
    suffix = index.name.removesuffix(INDEX).rpartition(".")[1:]
    found: dict[str, list[str]] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith("".join(suffix)):
            raise UserError(f"'{index}' names {name!r}, which is no {''.join(suffix)} file beside it")
        found.setdefault(name, []).append(tensor)
    return found


def check_file(path: Path) -> None:
    """Refuse what is no regular file, and so could keep a reader waiting forever.

    Raises:
        UserError: there is no such file, a link leads nowhere, or it is a pipe, a device or a folder.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"'{path}' is a link to a file that is not there: get the model again")
    if not path.exists():
        raise UserError(f"'{path}' is missing: the folder holds only a part of the model")
    if not path.is_file():
        raise UserError(f"'{path}' is no regular file")
