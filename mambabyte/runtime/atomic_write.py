"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, in bytes, that takes the name ``path`` when the block ends and all is on the disk.

    ``path`` is at every moment absent, the old file, or the whole new one. Where the block or the disk fails,
    nothing of the new one is left and the error goes on.
    """
    temporary = path.with_name(f"{path.name}.temporary")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def flush_folder(folder: Path) -> None:
    """Put the folder's names on the disk: without it a new one need not survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
