"""A long evaluation saves its progress to a small file, from which the same evaluation can resume."""

import hashlib
import json
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mambabyte.evaluation.protocols import Cursor
from mambabyte.models.states import map_tensors
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.system_errors import cannot_write


@dataclass
class SavedProgress:
    """Where and how often evaluations save their progress.

    folder: holds one file for each unfinished evaluation, named after what is measured and how.
    every: seconds between two saves.
    """

    folder: Path
    every: float = 60.0

    def open(self, measured: dict[str, Any]) -> "Unfinished":
        """The file of one evaluation, which ``measured`` describes completely in plain JSON."""
        key = hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()
        return Unfinished(self.folder / f"unfinished-{key[:16]}", key, self.every)


@dataclass
class Unfinished:
    """The progress of one evaluation: read at its start, saved as it runs, removed at its end."""

    path: Path
    key: str
    every: float
    saved_at: float = field(default_factory=time.monotonic)

    def read(self, device: torch.device) -> tuple[Cursor, np.ndarray] | None:
        """The cursor and the nats per document as last saved; None to start from the beginning."""
        try:
            saved = torch.load(self.path, map_location=device, weights_only=True)
            if saved["key"] != self.key:
                return None
            cursor = Cursor(saved["scored"].cpu().numpy(), saved["lanes"], saved["state"])
            return cursor, saved["nats"].cpu().numpy()
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
            return None  # absent or damaged: the evaluation only takes longer

    def save_if_due(self, cursor: Cursor, nats: np.ndarray) -> None:
        """Save, if the last save was at least ``every`` seconds ago.

        Raises:
            UserError: the file cannot be written.
        """
        if time.monotonic() - self.saved_at < self.every:
            return
        saved = {
            "key": self.key,
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
            raise cannot_write(self.path.parent, error, "out=") from error
        self.saved_at = time.monotonic()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
