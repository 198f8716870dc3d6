"""What a machine has to train with. Nothing here changes anything, and no credential is ever shown."""

from collections.abc import Iterator
from pathlib import Path

import mambabyte
from mambabyte.doctor import kernels, machine, services, software
from mambabyte.doctor.finding import Finding

__all__ = ["Finding", "examine"]


def examine(offline: bool = False) -> Iterator[Finding]:
    """Look at everything, in the order in which one thing needs another; ``offline`` asks no service."""
    yield Finding("mambabyte", f"{mambabyte.__version__} in {Path(mambabyte.__file__).parent}")
    yield software.python()
    yield from software.packages()
    torch = software.pytorch()
    yield torch
    if not torch.blocking:
        yield software.cuda()
        yield machine.memory()
        yield kernels.compiler()
        yield kernels.cache()
        yield from kernels.backends()
    yield machine.disk()
    yield from machine.caches()
    yield from services.credentials()
    if not offline:
        yield from services.reachability()
