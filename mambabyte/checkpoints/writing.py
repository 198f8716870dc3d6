"""Checkpoint files: written under a temporary name, with a checksum, flushed to disk, then renamed."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mambabyte.checkpoints.checksum import ChecksummedWriter
from mambabyte.errors import UserError
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.system_errors import cannot_write

FORMAT = 1


def write(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint, its checksum included, atomically.

    Raises:
        UserError: the disk is full or the folder is not writable; the temporary file is removed.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            save_pickle(checkpoint, file)
    except OSError as error:
        fault = cannot_write(path, error, "run_dir=", kind="the checkpoint")
        raise UserError(f"{fault}, then repeat the command; earlier checkpoints are intact") from error


def save_pickle(content: Any, file: BinaryIO) -> None:
    """``torch.save`` into an open file, with its checksum; OSError if the disk is full."""
    writer = ChecksummedWriter(file)
    try:
        torch.save(content, writer)  # type: ignore[arg-type]
    except RuntimeError:  # torch's zip writer hides the system's error behind its own
        if writer.fault is None:
            raise
        raise writer.fault from None
    writer.append_checksum()


def point_last_at(path: Path) -> None:
    """Make ``last.ckpt`` beside ``path`` a symbolic link to it, if the file system has such links."""
    link = path.with_name("last.ckpt")
    temporary = path.with_name("last.ckpt.temporary")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(path.name)
        os.replace(temporary, link)
    except OSError:
        temporary.unlink(missing_ok=True)
