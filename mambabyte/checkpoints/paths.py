"""Paths: ``<run>/checkpoints/step_00001000.ckpt``, and ``last.ckpt``, a link to the newest."""

import re
from pathlib import Path

from mambabyte.checkpoints.formats.layout import ADAPTER, ADAPTER_CONFIG, is_model_folder, refuse_adapters
from mambabyte.errors import UserError

_STEP = re.compile(r"step_(\d{8,})\.ckpt")


def checkpoint_folder(run_dir: str | Path) -> Path:
    """The folder of a run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def step_file(folder: Path, step: int) -> Path:
    """The checkpoint of an optimizer step."""
    return folder / f"step_{step:08d}.ckpt"


def step_files(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first: files, or folders of shards."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def resolve(path: str | Path) -> Path:
    """The checkpoint that ``path`` is, or the newest one of a run directory or a folder of checkpoints.

    Raises:
        UserError: ``path`` does not exist or holds no checkpoint.
    """
    path = Path(path).expanduser()
    if path.name == ADAPTER or ((path / ADAPTER_CONFIG).is_file() and not is_model_folder(path)):
        refuse_adapters(path)
    if path.is_file() or (path.is_dir() and (_STEP.fullmatch(path.name) or is_model_folder(path))):
        return path
    if not path.is_dir():
        raise UserError(
            f"there is no checkpoint at '{path}': ckpt= takes a run directory, a .ckpt file, a model's "
            "folder or hub:owner/name"
        )
    files = step_files(checkpoint_folder(path)) or step_files(path)
    if not files:
        raise UserError(
            f"the directory '{path}' holds no checkpoint (checkpoints/step_*.ckpt) and no config.json"
        )
    return files[-1]
