"""What `mambabyte eval` measures besides bits per byte."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambabyte.runtime.system_errors import cannot_write


@dataclass(frozen=True)
class Study:
    """The result of one study: plain JSON values, and the lines that show them.

    fault: why its picture could not be written, which is said when the figures have been printed.
    coloured: the lines hold colours for a terminal, and no control characters of the data.
    """

    values: Any
    lines: list[str]
    fault: str | None = None
    coloured: bool = False


def write_picture(path: Path, write: Callable[[], None]) -> str | None:
    """Call ``write``; return a sentence if it cannot write ``path``."""
    try:
        write()
    except OSError as error:
        return str(cannot_write(path, error, "out="))
    return None
