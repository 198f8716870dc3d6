"""Peak memory begins anew with each job."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mambabyte.training import memory
from mambabyte.training.memory import PeakMemory


def test_the_peak_is_of_the_time_since_it_was_made() -> None:
    first = PeakMemory(torch.device("cpu"))
    before = first.bytes()
    if before is None:
        pytest.skip("this system does not tell")
    block = np.ones(2**23)  # 64 MiB, which the allocator gives back to the system when it is freed
    assert first.bytes() > before + 0.9 * block.nbytes
    size = block.nbytes
    del block
    peak = first.bytes()
    assert peak > before + 0.9 * size
    assert PeakMemory(torch.device("cpu")).bytes() < peak - 0.5 * size


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert PeakMemory(torch.device("cpu")).bytes() is None
