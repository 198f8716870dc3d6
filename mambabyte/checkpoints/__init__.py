"""Checkpoint files: their names, reading (never unpickling code) and writing (all or nothing)."""

from mambabyte.checkpoints.export import write_export
from mambabyte.checkpoints.paths import checkpoint_folder, latest_checkpoint, resolve
from mambabyte.checkpoints.reading import load_model, read, read_newest, run_config, weights_fingerprint
from mambabyte.checkpoints.sharded import PART, remove, write_part
from mambabyte.checkpoints.writing import FORMAT, write

__all__ = [
    "FORMAT",
    "PART",
    "checkpoint_folder",
    "latest_checkpoint",
    "load_model",
    "read",
    "read_newest",
    "remove",
    "resolve",
    "run_config",
    "weights_fingerprint",
    "write",
    "write_export",
    "write_part",
]
