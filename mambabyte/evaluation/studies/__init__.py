"""What `mambabyte eval` measures besides bits per byte."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Study:
    """The result of one study: plain JSON values, and the lines that show them."""

    values: Any
    lines: list[str]
