"""mambabyte drafter: trains a subword Mamba that drafts for a byte model."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mambabyte.commands import CKPT, DATA, OUT, Command
from mambabyte.config.composition import CommandSettings
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError
from mambabyte.runtime.system_errors import cannot_write
from mambabyte.training.subword_settings import SubwordTraining

if TYPE_CHECKING:
    from mambabyte.checkpoints import Checkpoint


@dataclass(kw_only=True)
class DrafterSettings(SubwordTraining, CommandSettings):
    """conf/drafter.yaml"""

    yaml: ClassVar[str] = "drafter"
    ckpt: Path
    out: Path | None
    device: str
    data: DataSettings | None = None


def run(settings: DrafterSettings) -> None:
    """Write the folder of a drafter, and say on stderr how good it is.

    Raises:
        UserError: the checkpoint or the data cannot be read, the folder is there or cannot be written, the
            tokenizers library is missing.
    """
    from mambabyte import checkpoints
    from mambabyte.generation.speculative.subword import save_subword_drafter
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.progress import progress_bar
    from mambabyte.training.subword_drafter import train_subword_drafter

    checkpoint = checkpoints.read(settings.ckpt)
    folder = _folder_of(checkpoint) if settings.out is None else Path(settings.out).expanduser()
    _refuse_to_write(folder)
    data = settings.data or _data_of(checkpoint)
    if data.is_task:
        raise UserError("a drafter learns from text, and this data is a synthetic task: set data= to text")
    device = choose_device(settings.device)
    trained = train_subword_drafter(
        data.prepare("train"), settings, device, progress_bar("training", unit=" steps")
    )
    try:
        save_subword_drafter(folder, trained.model, trained.tokenizer)
    except OSError as error:
        raise cannot_write(folder, error, "out=") from error
    print(
        f"mambabyte: '{folder}' holds a drafter of {trained.model.num_parameters():,} parameters and "
        f"{trained.tokenizer.vocabulary:,} subwords, {trained.bits_per_byte:.3f} bits per byte on its last "
        f"training windows; use it with generate draft={folder}",
        file=sys.stderr,
    )


def _refuse_to_write(folder: Path) -> None:
    """Raises UserError, before anything is trained, if a new folder cannot be written there; what it is in is
    made."""
    if folder.exists() or folder.is_symlink():
        raise UserError(f"'{folder}' is there already: choose another with out=, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise cannot_write(folder, error, "out=") from error


def _folder_of(checkpoint: Checkpoint) -> Path:
    path = checkpoint.path
    if path.parent.name != "checkpoints":
        raise UserError("this checkpoint is in no run of ours: say with out= where to write the drafter")
    return path.parent.parent / "drafter"


def _data_of(checkpoint: Checkpoint) -> DataSettings:
    try:
        return DataSettings.from_settings(checkpoint.config.get("data"), "data")
    except UserError as fault:
        raise UserError(
            f"'{checkpoint.name}' does not say on which data it was trained; set data= to what the drafter "
            "learns from"
        ) from fault


COMMAND = Command(
    "train a subword model that drafts for a byte model: mambabyte drafter --ckpt runs/quickstart",
    DrafterSettings,
    run,
    flags=(CKPT, DATA, OUT),
)
