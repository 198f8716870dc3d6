"""Reading checkpoints. Files may come from strangers: only tensors and plain values are ever unpickled."""

import hashlib
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mambabyte.checkpoints.checksum import is_intact
from mambabyte.checkpoints.export import is_export, read_export
from mambabyte.checkpoints.paths import checkpoint_folder, resolve, step_files
from mambabyte.checkpoints.sharded import join, part_files
from mambabyte.checkpoints.writing import FORMAT
from mambabyte.errors import UserError
from mambabyte.models import ByteLM, config_from_dict

_MODEL_PREFIX = "model."  # the attribute of the training module that holds the ByteLM


class DamagedCheckpoint(UserError):
    """The file does not hold what was once written to it."""


def read(path: str | Path) -> dict[str, Any]:
    """The whole checkpoint as a dict, tensors on the CPU (memory-mapped: what is not used is not read).

    Args:
        path: a run directory or a checkpoint file.

    Raises:
        DamagedCheckpoint: the file is cut short, or a bit of it is not what it was.
        UserError: the file is missing, not ours, or holds more than tensors and plain values.
    """
    path = resolve(path)
    try:
        checkpoint = _load(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' is not a mambabyte checkpoint: it holds more than tensors and plain values"
        ) from error
    except PermissionError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}; change its permissions") from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise DamagedCheckpoint(
            f"'{path}' cannot be read as a checkpoint: it is damaged, cut short or another format; if it is "
            "the newest of a run, remove it, and the one before it counts"
        ) from error
    ours = checkpoint.get("mambabyte") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not all(
        isinstance(part, dict) for part in (ours.get("model"), checkpoint.get("state_dict"))
    ):
        raise UserError(f"'{path}' was not written by mambabyte: it names no model")
    if ours.get("format") != FORMAT:
        raise UserError(
            f"'{path}' has checkpoint format {ours.get('format')!r}; this version reads format {FORMAT}"
        )
    return checkpoint


def read_newest(run_dir: str | Path) -> tuple[Path, dict[str, Any], list[Path]] | None:
    """The newest checkpoint of a run that is whole: its file, its content, and the damaged ones after it.

    None if the run has no checkpoint at all.

    Raises:
        UserError: all of its checkpoints are damaged, or the newest is refused for another reason.
    """
    damaged: list[Path] = []
    for path in reversed(step_files(checkpoint_folder(run_dir))):
        try:
            return path, read(path), damaged
        except DamagedCheckpoint:
            damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise UserError(
            f"every checkpoint in '{damaged[0].parent}' is damaged ({names}): bring back a copy, or "
            "remove that folder to train from the start"
        )
    return None


def _load(path: Path) -> Any:
    if not path.is_dir():
        _check_intact(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if is_export(path):
        return read_export(path, _MODEL_PREFIX)
    return join([_load(file) for file in part_files(path)])


def run_config(path: str | Path) -> dict[str, Any]:
    """The resolved configuration of the run that wrote the checkpoint."""
    config = read(path)["mambabyte"].get("config")
    if not isinstance(config, dict):
        raise UserError(f"'{resolve(path)}' does not say with which configuration it was trained")
    return config


def load_model(path: str | Path) -> ByteLM:
    """The trained model, in eval mode, on the CPU, in the precision it was saved in.

    Args:
        path: a run directory or a checkpoint file.

    Raises:
        UserError: the file cannot be read (see :func:`read`) or its weights do not fit the model it names.
    """
    checkpoint = read(path)
    config = config_from_dict(checkpoint["mambabyte"]["model"])
    weights = {
        name.removeprefix(_MODEL_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_MODEL_PREFIX)
    }
    with torch.random.fork_rng(
        devices=[]
    ):  # the initial weights are overwritten: leave the caller's draws alone
        model = config.build()
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f"the weights in '{resolve(path)}' do not fit the model the file describes"
        ) from error
    return model.eval()


def _check_intact(path: Path) -> None:
    status = path.stat()
    if not _is_intact(path, status.st_ino, status.st_size, status.st_mtime_ns):
        raise ValueError("the file does not agree with its checksum")


@lru_cache(maxsize=64)
def _is_intact(path: Path, *version: int) -> bool:
    # a command reads a checkpoint's settings and its weights: gigabytes need no second look
    return is_intact(path)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of the state dict, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
