"""The CPU threads of a process that trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_VARIABLE = "OMP_NUM_THREADS"


def threads_of_each(processes: int) -> int:
    """The threads that PyTorch takes, shared between the processes of this machine."""
    return max(1, torch.get_num_threads() // processes)


@contextmanager
def using_threads(count: int | str | None) -> Iterator[None]:
    """Compute with so many threads within the block, and in processes started in it. Nothing changes if
    ``count`` is no number."""
    if not isinstance(count, int):
        yield
        return
    threads, variable = torch.get_num_threads(), os.environ.get(_VARIABLE)
    torch.set_num_threads(count)
    os.environ[_VARIABLE] = str(count)  # Lightning sets the number itself unless this does
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        del os.environ[_VARIABLE]
        if variable is not None:
            os.environ[_VARIABLE] = variable
