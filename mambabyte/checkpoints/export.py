"""Exports: a model to share, as a folder in our own format (safetensors and JSON) or another program's."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from safetensors import SafetensorError

from mambabyte.checkpoints.building import model_of, shapes
from mambabyte.checkpoints.formats.layout import CONFIG, SAFETENSORS
from mambabyte.checkpoints.formats.weights import read_tensors, write_tensors
from mambabyte.checkpoints.writing import FORMAT
from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.models.lora import is_adapted
from mambabyte.runtime.atomic_write import atomic_folder
from mambabyte.runtime.system_errors import cannot_write
from mambabyte.runtime.valid_json import valid_json

Format = Literal["safetensors", "mamba_ssm", "transformers", "gguf"]
_CARD = "README.md"


def write_export(
    model: ByteLM,
    config: Mapping[str, Any] | None,
    step: int,
    folder: str | Path,
    format: Format = "safetensors",
    card: str | None = None,
) -> None:
    """Write ``folder`` completely or not at all.

    Args:
        config: the run's, and ``step`` its optimizer steps; kept by our own format, ``safetensors``. Absolute
            paths in it are left out: they are of this machine alone.
        format: whose layout; each but our own has a file in :mod:`mambabyte.checkpoints.formats`.
        card: a text about the model, for README.md.

    Raises:
        UserError: the format cannot hold the model, or the folder exists already or cannot be written.
    """
    check_format(model, format)
    with new_folder(folder, card) as temporary:
        if format == "safetensors":
            _write_ours(model, config, step, temporary)
        else:
            _module(format).write(model, temporary)


def without_further_heads(model: ByteLM) -> ByteLM:
    """The same model, with the same memory, as a predictor of the next byte alone."""
    config = replace(model.config, prediction_heads=1, further_heads_weight=1.0)
    weights = model.state_dict()
    return model_of(config, {name: weights[name] for name in shapes(config)}).eval()


@contextmanager
def new_folder(folder: str | Path, card: str | None) -> Iterator[Path]:
    """The folder under a temporary name, until all that belongs in it is written."""
    folder = Path(folder).expanduser()
    exists = f"'{folder}' already exists: remove it, or choose another folder"
    try:
        if folder.exists():
            raise UserError(exists)
        with atomic_folder(folder) as temporary:
            yield temporary
            if card is not None:
                (temporary / _CARD).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        if os.path.exists(folder):  # another export was quicker
            raise UserError(exists) from error
        raise cannot_write(folder, error) from error


def check_format(model: ByteLM, format: Format) -> None:
    """Raise UserError if the format cannot hold the model, with the reason."""
    if is_adapted(model):
        raise UserError(
            "this model has adapters beside its weights: merge them first (merge_and_unload of peft)"
        )
    if format != "safetensors" and model.further_heads is not None:
        raise UserError(
            f"format={format} holds the next byte's head alone: give it "
            "mambabyte.checkpoints.without_further_heads(model)"
        )
    if format != "safetensors":
        _module(format).check(model)


def _module(format: Format) -> ModuleType:
    return import_module(f"mambabyte.checkpoints.formats.{format}")


def _write_ours(model: ByteLM, config: Mapping[str, Any] | None, step: int, folder: Path) -> None:
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        # safetensors refuses shared memory: a tied weight is written under both its names
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    description = {"format": FORMAT, "model": model.config.to_dict(), "config": portable(config)}
    text = valid_json({**description, "global_step": step}, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    write_tensors(tensors, folder)


def portable(value: Any) -> Any:
    """``value`` without the absolute paths in it, also those in lists and mappings."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items() if not _is_absolute(item)}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value if not _is_absolute(item)]
    return value


def _is_absolute(value: Any) -> bool:
    return isinstance(value, (str, Path)) and os.path.isabs(os.path.expanduser(value))


def is_export(description: Mapping[str, Any]) -> bool:
    """Whether this is the config.json of a folder that :func:`write_export` wrote in our own format."""
    return "format" in description and "model" in description


def read_export(folder: Path, description: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The export with this config.json as a checkpoint's content, the weights' names with ``prefix``.

    Raises:
        UserError: the weights are missing or damaged.
    """
    weights = read_tensors(folder / SAFETENSORS)
    ours = {key: value for key, value in description.items() if key != "global_step"}
    return {
        "state_dict": {f"{prefix}{name}": tensor for name, tensor in weights.items()},
        "global_step": description.get("global_step"),
        "mambabyte": ours,
    }
