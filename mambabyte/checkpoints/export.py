"""Exports: a model to share, as a folder with ``model.safetensors`` and ``config.json``."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mambabyte.checkpoints.writing import FORMAT
from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.runtime.atomic_write import atomic_folder
from mambabyte.runtime.system_errors import cannot_write
from mambabyte.runtime.valid_json import valid_json

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def write_export(model: ByteLM, config: Mapping[str, Any] | None, step: int, folder: str | Path) -> None:
    """Write ``folder`` completely or not at all, with the run's configuration, if known, and optimizer steps.

    Absolute paths in the configuration are left out: they are of this machine alone.

    Raises:
        UserError: the folder exists already, or cannot be written.
    """
    folder = Path(folder).expanduser()
    exists = f"'{folder}' already exists: remove it, or choose another folder"
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        # safetensors refuses shared memory: a tied weight is written under both its names
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    try:
        if folder.exists():
            raise UserError(exists)
        with atomic_folder(folder) as temporary:
            save_file(tensors, temporary / _WEIGHTS, metadata={"format": "pt"})
            description = {"format": FORMAT, "model": model.config.to_dict(), "config": _portable(config)}
            text = valid_json({**description, "global_step": step}, indent=2, ensure_ascii=False)
            (temporary / _CONFIG).write_text(text + "\n", encoding="utf-8")
            # safetensors lets its owner alone read the weights
            shutil.copymode(temporary / _CONFIG, temporary / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        if os.path.exists(folder):  # another export was quicker
            raise UserError(exists) from error
        raise cannot_write(folder, error) from error


def _portable(value: Any) -> Any:
    """``value`` without the absolute paths in it, also those in lists and mappings."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items() if not _is_absolute(item)}
    if isinstance(value, (list, tuple)):
        return [_portable(item) for item in value if not _is_absolute(item)]
    return value


def _is_absolute(value: Any) -> bool:
    return isinstance(value, (str, Path)) and os.path.isabs(os.path.expanduser(value))


def is_export(path: Path) -> bool:
    """Whether ``path`` is a folder that :func:`write_export` wrote."""
    return (path / _WEIGHTS).is_file() and (path / _CONFIG).is_file()


def read_export(folder: Path, prefix: str) -> dict[str, Any]:
    """The export as a checkpoint's content, the weights' names with ``prefix``; ValueError if damaged."""
    try:
        description = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / _WEIGHTS)
        step = description.pop("global_step")
    except (SafetensorError, AttributeError, KeyError) as error:
        raise ValueError(str(error)) from error
    state_dict = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    return {"state_dict": state_dict, "global_step": step, "mambabyte": description}
