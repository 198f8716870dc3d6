"""Checkpoints are written to a temporary name, sealed, flushed to the disk, and then given their own name."""

import os
from pathlib import Path
from typing import Any

import torch

from mambabyte.checkpoints.checksum import SealedWriter
from mambabyte.errors import UserError
from mambabyte.runtime.atomic_write import whole_file

FORMAT = 1


def write(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint so that ``path`` is at every moment absent, the old file, or the whole new one.

    The file carries its checksum.

    Raises:
        UserError: the disk is full or the folder not writable; the temporary file is removed.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            sealed = SealedWriter(file)
            torch.save(checkpoint, sealed)  # type: ignore[arg-type]
            sealed.seal()
    except (OSError, RuntimeError) as error:
        # torch's zip writer hides the disk's OSError inside a RuntimeError of its own
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or "the disk did not take it"
        raise UserError(
            f"cannot write the checkpoint '{path}' ({reason}): free some space or choose another run_dir=, "
            "then repeat the command; earlier checkpoints are whole"
        ) from error


def point_last_at(path: Path) -> None:
    """Make ``last.ckpt`` beside ``path`` a link to it; left out where the file system has no links."""
    link = path.with_name("last.ckpt")
    temporary = path.with_name("last.ckpt.temporary")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(path.name)
        os.replace(temporary, link)
    except OSError:
        temporary.unlink(missing_ok=True)
