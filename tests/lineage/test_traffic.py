"""What the scans move and keep."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mambabyte.lineage import selection
from mambabyte.lineage.traffic import Traffic, count_traffic
from mambabyte.ops import selective_scan
from mambabyte.ops.cpu import build


def test_traffic_counts_each_tensor_once() -> None:
    a, b = torch.zeros(10), torch.zeros(10)
    # a + b moves three tensors and passes its gradient on; a * b keeps both, and each gradient is a product
    assert count_traffic(torch.add, a, b) == Traffic(forward=120, kept=0, backward=0)
    assert count_traffic(torch.mul, a, b) == Traffic(forward=120, kept=80, backward=240)
    assert count_traffic(lambda x: x.view(2, 5).T, a) == Traffic(forward=0, kept=0, backward=0)


@pytest.mark.skipif(not build.available()[0], reason="needs the C++ kernel")
def test_the_fused_scan_moves_and_keeps_little() -> None:
    """Per element of u, in fp32: u, Δ and y once, 12 bytes, and in backward u, Δ and the gradients of all
    three, 20; beside them the share of B, C and the states, small for many channels."""
    inputs = selection.example(length=512, channels=256)
    fused, plain = (
        Traffic(*(count / inputs[0].numel() for count in count_traffic(form, *inputs)))
        for form in (partial(selective_scan, backend="cpu"), selection.scan_in_memory)
    )
    assert 12 < fused.forward < 16 and 8 < fused.kept < 12 and 20 < fused.backward < 26
    states = 4 * 16
    assert plain.forward > 10 * states and plain.kept > 3 * states and plain.backward > plain.forward
