"""The result of one check."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check; ``fix`` is None if all is well, ``blocking`` if training cannot start."""

    name: str
    value: str
    fix: str | None = None
    blocking: bool = False
