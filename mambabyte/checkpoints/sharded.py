"""A checkpoint as a folder, a file for each rank: what FSDP writes when no rank can hold all of it.

Each file is a checkpoint of its own in which a tensor that is shared out along its first dimension stands as
``{PART: this rank's rows}``. Reading lays the rows of all files one behind the other. Nothing but tensors and
plain values is in them, unlike in torch.distributed.checkpoint, whose metadata is a pickle.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mambabyte.checkpoints.writing import write
from mambabyte.runtime.atomic_write import flush_folder

PART = "rows of this rank"
_COUNT = "number of parts"


def write_part(
    checkpoint: dict[str, Any], path: str | Path, rank: int, ranks: int, barrier: Callable[[], None]
) -> None:
    """Write this rank's file into the folder ``path``, which is there whole or not at all.

    Every rank calls it; the folder lies where all of them can write. ``barrier`` waits for the other ranks.
    """
    path = Path(path)
    growing = path.with_name(f"{path.name}.temporary")
    write({**checkpoint, _COUNT: ranks}, growing / _file_name(rank))
    barrier()
    if rank == 0:
        remove(path)
        os.replace(growing, path)
        flush_folder(path.parent)
    barrier()


def part_files(folder: Path) -> list[Path]:
    """The files of a folder that :func:`write_part` has written, in the order of ranks."""
    return sorted(folder.glob("rank_*.ckpt"))


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The checkpoint whose parts these are, in the order of ranks.

    Raises:
        ValueError: some are missing.
    """
    if not parts or len(parts) != parts[0].get(_COUNT):
        raise ValueError(f"{len(parts)} parts of {parts[0].get(_COUNT) if parts else 'a checkpoint'}")
    whole = _join(parts)
    del whole[_COUNT]
    return whole


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict) and first.keys() == {PART}:
        return torch.cat([value[PART] for value in values])
    if isinstance(first, dict):
        return {key: _join([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_join(items) for items in zip(*values, strict=True)]
    return first  # the same on every rank, or rank 0's to say


def remove(path: Path) -> None:
    """Remove a checkpoint, file or folder; a folder loses its name before its content."""
    if path.is_dir() and not path.is_symlink():
        doomed = path if path.suffix == ".temporary" else path.with_name(f"{path.name}.old.temporary")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def _file_name(rank: int) -> str:
    return f"rank_{rank:05}.ckpt"
