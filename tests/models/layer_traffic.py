"""Counts what a layer of MambaByte launches, moves and keeps in training, without a GPU.

A model of one layer and one of two run forward and backward on fake tensors, which have shapes and no data;
the difference is a layer's. They are CPU tensors, because PyTorch's CPU build has no autograd for others, but
the model takes the ways that it takes on CUDA, and the operators are those of our kernels.

    kernels    an operator of PyTorch counts as one, a view as none, ours as `LAUNCHES` says
    bytes      each kernel's inputs and outputs once, and what ours write for themselves and read again
    kept       storages that are alive between forward and backward
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mambabyte.models import MambaByteConfig, projection
from mambabyte.ops import backends, recomputation
from mambabyte.training.planning.memory_estimate import LiveStorages, make_fake, on_meta

MAMBABYTE_353M = MambaByteConfig(d_model=1024, n_layer=53)
# The kernels that our operators launch on CUDA, those that add up partial sums included: of the scan those in
# CUDA C++, of the others those in Triton.
LAUNCHES = {
    "mambabyte::residual_norm": 1,
    "mambabyte::residual_norm_backward": 2,
    "mambabyte::causal_conv1d": 1,
    "mambabyte::causal_conv1d_backward": 2,
    "mambabyte::selective_scan": 1,
    "mambabyte::selective_scan_backward": 2,
}
# The channels and steps whose partial sums a kernel adds up before it writes them.
SCAN_BLOCK, CONV_TILE, NORM_ROWS = 64, 128, 128
_FREE = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::_unsafe_view", "aten::detach"}


@dataclass
class Traffic:
    """Kernels by operator; bytes read and written, and those of them that ours write for themselves."""

    kernels: Counter[str]
    bytes: Counter[str]
    kept: int = 0

    @property
    def total_kernels(self) -> int:
        return self.kernels.total()

    @property
    def total_bytes(self) -> int:
        return self.bytes.total()

    def __sub__(self, other: Traffic) -> Traffic:
        kernels, moved = self.kernels.copy(), self.bytes.copy()
        kernels.subtract(other.kernels)
        moved.subtract(other.bytes)
        return Traffic(kernels, moved, self.kept - other.kept)


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function._schema.name
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        writes = written or function._schema.is_mutable
        if function.is_view or name in _FREE or not writes:
            return out
        self.kernels[name] += LAUNCHES.get(name, 1)
        tensors = [*(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), *written]
        self.bytes[name] += sum(_extent(x) for x in tensors) + _partial_sums(name, _by_name(function, args))
        return out


def _extent(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, each element of memory once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
    return torch.Size(sizes).numel() * tensor.element_size()


def _by_name(function: Any, args: Any) -> dict[str, Any]:
    return {argument.name: value for argument, value in zip(function._schema.arguments, args, strict=False)}


def _partial_sums(name: str, given: dict[str, Any]) -> int:
    """Bytes that a kernel writes for the kernel that adds them up, and that this one reads."""
    if name == "mambabyte::selective_scan_backward":
        return 2 * 2 * 4 * given["B"].numel() * -(-given["u"].shape[-1] // SCAN_BLOCK)
    if name == "mambabyte::causal_conv1d_backward":
        return 2 * 4 * given["x"].numel() // CONV_TILE * (given["weight"].shape[1] + 1)
    if name == "mambabyte::residual_norm_backward":
        return 2 * 2 * 4 * given["x"].numel() // NORM_ROWS
    return 0


@contextmanager
def as_on_cuda(scan: str, conv: str, norm: str) -> Iterator[None]:
    """Let ops use these backends for any tensor, and models take the ways that they take on CUDA."""
    chosen = {"selective_scan": (scan,), "causal_conv1d": (conv,), "residual_norm": (norm,)}
    with ExitStack() as stack:
        stack.enter_context(patch.object(backends, "BACKENDS", {**backends.BACKENDS, **chosen}))
        stack.enter_context(patch.object(backends, "_serves", lambda *_: True))
        stack.enter_context(patch.object(backends, "_objection", lambda *_: None))
        stack.enter_context(patch.object(recomputation, "DEVICES", {"cpu"}))
        stack.enter_context(patch.object(projection, "WIDE_PRODUCTS", {"cpu"}))
        yield


def count(config: MambaByteConfig, batch: int, length: int) -> Traffic:
    """One micro-batch through the model, its head and its loss, in bf16 as the trainer runs it, and back."""
    model = on_meta(config)
    device = torch.device("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(model, device)
        bytes = torch.zeros(batch, length, dtype=torch.uint8)
        document_start = torch.zeros(batch, length, dtype=torch.bool)
        with LiveStorages() as live, _Counting() as counting:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(bytes, document_start=document_start)
                loss = cross_entropy(logits.float().flatten(0, 1), bytes.long().flatten())
            kept = live.live
            loss.backward()
    return Traffic(counting.kernels, counting.bytes, kept)


def of_a_layer(config: MambaByteConfig, batch: int, length: int) -> Traffic:
    one, two = (count(replace(config, n_layer=layers), batch, length) for layers in (1, 2))
    return two - one


def main() -> None:
    """Print a layer's traffic, on the backends of scan, convolution and norm that the command names."""
    batch, length = 4, 8192
    with as_on_cuda(*sys.argv[1:] or ("cuda", "triton", "triton")):
        layer = of_a_layer(MAMBABYTE_353M, batch, length)
    elements = batch * length * MAMBABYTE_353M.d_inner
    for name, kernels in sorted(layer.kernels.items()):
        if kernels:
            print(f"{name:40}{kernels:4} kernels{layer.bytes[name] / elements:8.2f} bytes per element")
    print(f"{'':40}{layer.total_kernels:4} kernels{layer.total_bytes / elements:8.2f} bytes per element")
    print(f"kept for backward: {layer.kept / elements:.2f} bytes per element")


if __name__ == "__main__":
    main()
