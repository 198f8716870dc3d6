"""Checkpoint files: paths, reading (without unpickling code) and writing (atomically)."""

from mambabyte.checkpoints.adapter import write_adapter
from mambabyte.checkpoints.export import portable, without_further_heads, write_export
from mambabyte.checkpoints.hub import hub_id, upload
from mambabyte.checkpoints.paths import checkpoint_folder, resolve
from mambabyte.checkpoints.reading import Checkpoint, load_model, read, read_newest, weights_fingerprint
from mambabyte.checkpoints.sharded import SHARD, remove, write_shard
from mambabyte.checkpoints.writing import FORMAT, write

__all__ = [
    "FORMAT",
    "SHARD",
    "Checkpoint",
    "checkpoint_folder",
    "hub_id",
    "load_model",
    "portable",
    "read",
    "read_newest",
    "remove",
    "resolve",
    "upload",
    "weights_fingerprint",
    "without_further_heads",
    "write",
    "write_adapter",
    "write_export",
    "write_shard",
]
