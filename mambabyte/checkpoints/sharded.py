"""Sharded checkpoints: a folder with a file for each rank, for FSDP models that no single rank can hold.

Each file is a checkpoint in which a tensor that is sharded along its first dimension is ``{SHARD: this rank's
rows}``. Unlike those of torch.distributed.checkpoint, whose metadata is a pickle, they hold only tensors and
plain values.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mambabyte.checkpoints.writing import write
from mambabyte.runtime.atomic_write import fsync_folder

SHARD = "rows of this rank"
_COUNT = "number of parts"


def write_shard(
    checkpoint: dict[str, Any], path: str | Path, rank: int, ranks: int, barrier: Callable[[], None]
) -> None:
    """Write this rank's file into the folder ``path``, which appears complete or not at all.

    Every rank must call this, with a ``path`` that they share and a ``barrier`` that waits for the others.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.temporary")
    write({**checkpoint, _COUNT: ranks}, temporary / f"rank_{rank:05}.ckpt")
    barrier()
    if rank == 0:
        remove(path)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    barrier()


def shard_files(folder: Path) -> list[Path]:
    """The files of a sharded checkpoint, in the order of the ranks."""
    return sorted(folder.glob("rank_*.ckpt"))


def join_shards(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole checkpoint from its shards in the order of the ranks; ValueError if some are missing."""
    if not shards or len(shards) != shards[0].get(_COUNT):
        raise ValueError(f"{len(shards)} shards of {shards[0].get(_COUNT) if shards else 'a checkpoint'}")
    whole = _join(shards)
    del whole[_COUNT]
    return whole


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict) and first.keys() == {SHARD}:
        return torch.cat([value[SHARD] for value in values])
    if isinstance(first, dict):
        return {key: _join([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_join(items) for items in zip(*values, strict=True)]
    return first  # where the ranks differ, rank 0's value counts


def remove(path: Path) -> None:
    """Remove a checkpoint, file or folder. A folder is renamed first, so that no half of it looks whole."""
    if path.is_dir() and not path.is_symlink():
        doomed = path if path.suffix == ".temporary" else path.with_name(f"{path.name}.old.temporary")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
