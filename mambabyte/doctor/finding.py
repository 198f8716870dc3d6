"""The answer to one question about this machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``fix`` is None where all is well; ``blocking`` keeps training from starting."""

    name: str
    value: str
    fix: str | None = None
    blocking: bool = False
