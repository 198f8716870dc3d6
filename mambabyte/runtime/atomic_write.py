"""Files and folders that are written completely or not at all.

Each writer has a temporary name of its own beside the target, and holds a lock on it: so two writers of one
target do not disturb each other, and the next writer can tell, and remove, what a killed process left.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".temporary"  # the end of all temporary names


@contextmanager
def atomic_write(path: Path, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file for bytes, which is flushed to disk and renamed to ``path`` when the block ends.

    If the block or the disk fails, the temporary file is removed and ``path`` stays as it was.

    Args:
        replace: whether a file that is there by then is replaced.

    Raises:
        FileExistsError: ``path`` exists by then, and ``replace`` is false.
    """
    with _temporary(path, folder=False) as (temporary, descriptor):
        with open(descriptor, "w+b", closefd=False) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            _rename_to_new(temporary, path)
        fsync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder, which is renamed to ``path`` when the block ends, or removed if it fails.

    Raises:
        OSError: by then there is a file at ``path``, or a folder that is not empty.
    """
    with _temporary(path, folder=True) as (temporary, _):
        yield temporary
        os.replace(temporary, path)
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Flush the folder's entries to disk, so that a file just renamed survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(path: Path, folder: bool) -> Iterator[tuple[Path, int]]:
    """A new file or folder beside ``path``, locked, and its descriptor; removed unless it was renamed."""
    _remove_leftovers(path)
    while True:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        if folder:
            temporary.mkdir(parents=True)
            descriptor = os.open(temporary, os.O_RDONLY)
        else:  # the umask decides who may read it, as for any new file
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with suppress(OSError):  # a file system without locks: leftovers stay
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not temporary.exists():  # another process took it for a leftover before it was locked
                continue
            yield temporary, descriptor
            return
        finally:
            _remove(temporary)
            os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of ``path`` that no process holds locked."""
    ours = re.compile(re.escape(path.name) + r"\.[0-9a-f]{8}" + re.escape(TEMPORARY))
    with suppress(OSError):
        for name in filter(ours.fullmatch, os.listdir(path.parent)):
            _remove_unlocked(path.parent / name)


def _remove_unlocked(leftover: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(leftover, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(leftover)
        finally:
            os.close(descriptor)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        with suppress(OSError):
            temporary.unlink()


def _rename_to_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a rename, this fails if there is a file
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)
