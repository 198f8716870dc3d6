"""What this machine offers for training. Nothing here changes anything or shows a credential."""

from collections.abc import Iterator
from pathlib import Path

import mambabyte
from mambabyte.doctor import machine, services, software
from mambabyte.doctor.finding import Finding

__all__ = ["Finding", "examine"]


def examine(offline: bool = False) -> Iterator[Finding]:
    """Check everything, prerequisites first; ``offline`` contacts no service."""
    yield Finding("mambabyte", f"{mambabyte.__version__} in {Path(mambabyte.__file__).parent}")
    yield software.python()
    yield from software.packages()
    torch = software.pytorch()
    yield torch
    if not torch.blocking:
        from mambabyte.doctor import kernels  # needs torch

        yield software.cuda()
        yield machine.memory()
        yield machine.precision()
        yield kernels.compiler()
        yield kernels.cache()
        yield from kernels.backends()
    yield machine.disk()
    yield from machine.caches()
    yield from services.credentials()
    if not offline:
        yield from services.reachability()
