"""mambabyte decompress: the file that `mambabyte compress` was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mambabyte.commands import CKPT, OUT, Command, Words
from mambabyte.commands.compress import SUFFIX
from mambabyte.config.composition import CommandSettings
from mambabyte.errors import UserError


@dataclass
class DecompressSettings(CommandSettings):
    """conf/decompress.yaml"""

    yaml: ClassVar[str] = "decompress"
    ckpt: Path
    file: Path
    out: Path | None
    device: str


def run(settings: DecompressSettings) -> None:
    """Write the decompressed file and say on stdout what it is.

    Raises:
        UserError: see :mod:`mambabyte.coding`; an unreadable checkpoint, a device that is not there.
    """
    from mambabyte import checkpoints
    from mambabyte.coding import decompress_file
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.progress import progress_bar

    source = Path(settings.file).expanduser()
    if settings.out is not None:
        target = Path(settings.out).expanduser()
    elif source.suffix == SUFFIX and source.name != SUFFIX:
        target = source.with_suffix("")
    else:
        raise UserError(f"'{source}' does not end in {SUFFIX}: name the file to write with out=")
    model = checkpoints.load_model(settings.ckpt).to(choose_device(settings.device))
    size = decompress_file(model, source, target, progress_bar("decompressing"))
    print(f"{target}: {size:,} bytes")


COMMAND = Command(
    "get the file back: mambabyte decompress FILE.mbc --ckpt runs/quickstart",
    DecompressSettings,
    run,
    flags=(CKPT, OUT),
    words=Words("file", "FILE", "the file to decompress"),
)
