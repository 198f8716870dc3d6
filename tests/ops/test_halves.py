"""The gradients of two halves are one tensor, which is copied together only where it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mambabyte.ops.halves as module
from mambabyte.ops import causal_conv1d, selective_scan
from mambabyte.ops.halves import halves


def gradient(
    split: Any, dtype: torch.dtype = torch.float32, again: bool = False, passes: int = 1
) -> list[Tensor]:
    """Of a tensor whose first half is convolved and scanned, gated by the second, as in a Mamba block."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 37, 2 * 21, generator=generator).to(dtype).requires_grad_()
    delta, B, C = (torch.rand(2, 37, n, generator=generator).to(dtype) for n in (21, 3, 3))
    A, weight, bias = (torch.rand(21, 3, generator=generator) for _ in range(3))
    x, z = split(both * 1)
    x = causal_conv1d(x, weight, bias[:, 0])
    out = selective_scan(x, delta, -A, B, C, z=z)
    loss = (out.square() + (z if again else 0)).sum()
    return [torch.autograd.grad(loss, both, retain_graph=True)[0] for _ in range(passes)]


def chunked(x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(2, dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_copied_and_the_bits_are_the_same(dtype: torch.dtype, monkeypatch) -> None:
    expected = gradient(chunked, dtype)
    monkeypatch.setattr(module, "_together", lambda *_: pytest.fail("they were copied"))
    for found in gradient(halves, dtype, passes=2):
        assert torch.equal(found, expected[0])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float64]
)  # of the kernels' other, and of the reference
def test_other_dtypes(dtype: torch.dtype) -> None:
    assert torch.equal(gradient(halves, dtype)[0], gradient(chunked, dtype)[0])


def test_a_half_that_is_used_again() -> None:
    assert torch.equal(gradient(halves, again=True)[0], gradient(chunked, again=True)[0])
