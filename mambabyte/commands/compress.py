"""mambabyte compress: a file by a model's predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mambabyte.commands import CKPT, OUT, Command, Words
from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import setting

SUFFIX = ".mbc"


@dataclass(kw_only=True)
class CompressSettings(CommandSettings):
    """conf/compress.yaml"""

    yaml: ClassVar[str] = "compress"
    ckpt: Path
    file: Path
    out: Path | None
    lanes: int | None = setting(at_least=1, below=2**16)
    threads: int = setting(at_least=1, at_most=1024)
    device: str


def run(settings: CompressSettings) -> None:
    """Write the compressed file and say on stdout what it is.

    Raises:
        UserError: see :mod:`mambabyte.coding`; an unreadable checkpoint, a device that is not there.
    """
    from mambabyte import checkpoints
    from mambabyte.coding import compress_file
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.progress import progress_bar

    source = Path(settings.file).expanduser()
    target = Path(f"{source}{SUFFIX}") if settings.out is None else Path(settings.out).expanduser()
    checkpoint = checkpoints.read(settings.ckpt)
    model = checkpoint.build_model().to(choose_device(settings.device))
    window = None if model.recurrent else checkpoint.context_length
    bar = progress_bar("compressing")
    coded = compress_file(model, source, target, settings.lanes, window, settings.threads, bar)
    share = f" ({coded.bits_per_byte:.4f} bits per byte)" if coded.bytes else ""
    print(f"{target}: {coded.bytes:,} bytes in {coded.file_bytes:,}{share}")


COMMAND = Command(
    "compress a file losslessly by a model: mambabyte compress FILE --ckpt runs/quickstart",
    CompressSettings,
    run,
    flags=(CKPT, OUT),
    words=Words("file", "FILE", "the file to compress"),
)
