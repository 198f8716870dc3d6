"""Compressing one file into another, and back; the result is written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mambabyte.coding.coder import Coded, decode, encode
from mambabyte.coding.container import DamagedFile
from mambabyte.coding.predictions import MAX_LANES
from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.progress import ProgressCallback
from mambabyte.runtime.system_errors import cannot_write

_BYTES_PER_LANE = 1 << 14  # a lane begins without context, so shorter ones would compress worse


def compress_file(
    model: ByteLM,
    source: Path,
    target: Path,
    lanes: int | None = None,
    window: int | None = None,
    threads: int = 1,
    progress: ProgressCallback | None = None,
) -> Coded:
    """Compress the file ``source``, cut into ``lanes`` equal segments that are coded in parallel.

    Args:
        lanes: more are faster, but each begins without context; None: one per 16 KiB, up to 64.
        window: see :func:`mambabyte.coding.encode`.

    Raises:
        UserError: ``source`` cannot be read, ``target`` exists or cannot be written.
    """
    with _open(source) as file:
        before = _version(file)
        data = np.frombuffer(file.read(), np.uint8)  # no memory map: it would crash if the file shrank
        if lanes is None:
            lanes = min(MAX_LANES, max(1, len(data) // _BYTES_PER_LANE))
        if lanes < 1:
            raise UserError(f"lanes must be 1 or more, not {lanes}")
        bounds = np.linspace(0, len(data), lanes + 1, dtype=np.int64)
        with _new_file(target) as stream:
            coded = encode(model, data, np.diff(bounds).tolist(), stream, lanes, window, threads, progress)
            if _version(file) != before:
                raise UserError(f"'{source}' changed while it was compressed; repeat the command")
    return coded


def decompress_file(
    model: ByteLM, source: Path, target: Path, progress: ProgressCallback | None = None
) -> int:
    """Decompress ``source`` to ``target``; returns the number of bytes. A failure leaves no ``target``.

    Raises:
        UserError: see :func:`mambabyte.coding.decode`; ``source`` cannot be read, ``target`` exists or cannot
            be written.
    """
    with _open(source) as stream, _new_file(target) as output:

        def allocate(size: int) -> np.ndarray:
            if not size:
                return np.zeros(0, np.uint8)
            os.posix_fallocate(output.fileno(), 0, size)  # find a full disk now: a memory map would crash
            return np.memmap(output, dtype=np.uint8, mode="r+", shape=(size,))

        try:
            data = decode(model, stream, allocate, progress)
        except DamagedFile as fault:
            raise DamagedFile(f"cannot decompress '{source}': {fault}") from None
        if isinstance(data, np.memmap):
            data.flush()
        return len(data)


@contextmanager
def _open(source: Path) -> Iterator[BinaryIO]:
    try:
        if str(source) == "-" or (source.exists() and not source.is_file()):
            raise UserError(f"'{source}' is not a regular file; write what is to be read to one first")
        if not source.is_file():
            raise UserError(f"there is no file '{source}'")
        with open(source, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read '{source}': {error.strerror}") from error


def _version(file: BinaryIO) -> tuple[int, int]:
    """What changes when a file is written to."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    try:
        if target.exists():
            raise UserError(f"'{target}' already exists; remove it or choose another out=")
        with atomic_write(target, replace=False) as file:
            yield file
    except FileExistsError as error:
        raise UserError(
            f"another process wrote '{target}' meanwhile, which was left as it is; choose another out="
        ) from error
    except OSError as error:
        raise cannot_write(target, error, "out=") from error
