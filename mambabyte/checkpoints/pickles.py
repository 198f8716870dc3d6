"""PyTorch's zip files: only tensors and plain values are unpickled, and tensors are mapped, not read."""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

_PICKLE = "/data.pkl"
_LARGEST_PICKLE = 1 << 26  # bytes; it holds names and shapes, and no weights
# The one callable that PyTorch's restricted unpickler calls with any number and that fills so much memory.
_FILLS_MEMORY = re.compile(rb"c(?:builtins|__builtin__)\nbytearray\n")


def load_pickle(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote. Tensors are on the CPU, read when used.

    Raises:
        ValueError: the zip file was made to fill a reader's memory, or is none of ``torch.save``'s.
        pickle.UnpicklingError: it holds more than tensors and plain values.
        Exception: it is damaged; PyTorch raises many kinds.
    """
    _refuse_bombs(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _refuse_bombs(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return  # torch.load refuses it
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records are compressed")  # torch.save compresses none
        if len({record.filename for record in records}) < len(records):
            raise ValueError("two of its records have one name")
        for record in records:
            if record.filename.endswith(_PICKLE):
                if record.file_size > _LARGEST_PICKLE:
                    raise ValueError("its pickle is too large")
                if _FILLS_MEMORY.search(archive.read(record)):
                    raise ValueError("it makes arrays of any size")
