"""What the scans move and keep."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mambabyte.lineage import selection
from mambabyte.lineage.traffic import count_traffic
from mambabyte.ops import selective_scan
from mambabyte.ops.cpu import build


def test_traffic_counts_each_tensor_once() -> None:
    a, b = torch.zeros(10), torch.zeros(10)
    # of a + b, three tensors are moved and none kept; of a * b, three moved and both factors kept
    assert count_traffic(torch.add, a, b) == (120, 0)
    assert count_traffic(torch.mul, a, b) == (120, 80)
    assert count_traffic(lambda x: x.view(2, 5).T, a) == (0, 0)


@pytest.mark.skipif(not build.available()[0], reason="needs the C++ kernel")
def test_the_fused_scan_moves_and_keeps_little() -> None:
    """Per element of u, in fp32: u, Δ and y once, 12 bytes, and their share of B, C and the states."""
    inputs = selection.example(length=512, channels=256)
    elements = inputs[0].numel()
    fused = count_traffic(partial(selective_scan, backend="cpu"), *inputs)
    plain = count_traffic(selection.scan_in_memory, *inputs)
    assert 12 < fused.moved / elements < 20
    assert fused.kept / elements < 16
    assert plain.moved / elements > 10 * 4 * 16 and plain.kept / elements > 3 * 4 * 16
