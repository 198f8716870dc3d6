"""Peak memory is reset for each job."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mambabyte.runtime import memory
from mambabyte.runtime.memory import PeakMemory

# In a process of its own: the system may reclaim idle pages from one as large as pytest's.
PROGRAM = """
import numpy as np
import torch
from mambabyte.runtime.memory import PeakMemory

first = PeakMemory(torch.device("cpu"))
before = first.bytes()
block = np.ones(2**23)  # 64 MiB, which the allocator returns to the system when freed
size = block.nbytes
held = first.bytes()
del block
peak = first.bytes()
again = PeakMemory(torch.device("cpu")).bytes()
assert held > before + 0.9 * size, (before, held)
assert peak > before + 0.9 * size, (before, peak)
assert again < peak - 0.5 * size, (peak, again)
"""


def test_the_peak_is_since_construction() -> None:
    if PeakMemory(torch.device("cpu")).bytes() is None:
        pytest.skip("this system does not report it")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_system_that_does_not_report_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "PROC_SELF", tmp_path / "none")
    assert PeakMemory(torch.device("cpu")).bytes() is None


def test_a_limit_of_the_shell_counts(monkeypatch) -> None:
    """ulimit -v, which containers do not report."""
    if not (memory.PROC_SELF / "statm").exists():
        pytest.skip("this system does not report what is used")
    unlimited = memory.available_memory(torch.device("cpu"))
    used = int((memory.PROC_SELF / "statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_AS: (used + 2**28, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    left = memory.available_memory(torch.device("cpu"))
    assert left is not None and unlimited is not None
    assert left <= min(unlimited, 2**28 + 2**20)
