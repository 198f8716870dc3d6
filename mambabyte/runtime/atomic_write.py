"""Files that are written completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for bytes, which is flushed to disk and renamed to ``path`` when the block ends.

    If the block or the disk fails, the temporary file is removed and ``path`` stays as it was.
    """
    temporary = path.with_name(f"{path.name}.temporary")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def fsync_folder(folder: Path) -> None:
    """Flush the folder's entries to disk, so that a file just renamed survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
