"""A long evaluation leaves a small file now and then, from which the same evaluation goes on."""

import hashlib
import json
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mambabyte.errors import UserError
from mambabyte.evaluation.protocols import Cursor
from mambabyte.models.states import map_tensors
from mambabyte.runtime.atomic_write import atomic_write


@dataclass
class SavedProgress:
    """Where and how often an evaluation notes how far it is.

    folder: holds one file for each evaluation that is not finished, named after what is measured and how.
    every: seconds between two notes.
    """

    folder: Path
    every: float = 60.0

    def open(self, measured: dict[str, Any]) -> "Notes":
        """The notes of the evaluation that ``measured`` describes completely, in plain JSON."""
        key = hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()
        return Notes(self.folder / f"unfinished-{key[:16]}", key, self.every)


class Notes:
    """The file of one evaluation: read at its start, replaced as it goes, removed at its end."""

    def __init__(self, path: Path, key: str, every: float) -> None:
        self.path = path
        self._key = key
        self._every = every
        self._saved_at = time.monotonic()

    def read(self, device: torch.device) -> tuple[Cursor, np.ndarray] | None:
        """The cursor and the nats of each document that were saved last; None to start from the beginning."""
        try:
            saved = torch.load(self.path, map_location=device, weights_only=True)
            if saved["key"] != self._key:
                return None
            cursor = Cursor(saved["scored"].cpu().numpy(), saved["lanes"], saved["state"])
            return cursor, saved["nats"].cpu().numpy()
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
            return None  # there is none, or it is damaged: what it saved is only time

    def save_if_due(self, cursor: Cursor, nats: np.ndarray) -> None:
        """Replace the file by the present moment's, if the last one is old enough.

        Raises:
            UserError: it cannot be written.
        """
        if time.monotonic() - self._saved_at < self._every:
            return
        saved = {
            "key": self._key,
            "scored": torch.from_numpy(cursor.scored),
            "nats": torch.from_numpy(nats),
            "lanes": cursor.lanes,
            "state": None if cursor.state is None else map_tensors(torch.clone, cursor.state),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as file:
                torch.save(saved, file)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot note the progress in '{self.path.parent}' ({error}); choose another output_dir="
            ) from error
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
