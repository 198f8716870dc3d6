"""Which implementation of an op serves which tensors, and why."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mambabyte.ops.cpu import build

OPS = ("selective_scan", "causal_conv1d", "residual_norm")
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_override: str | None = None  # a plain global: torch.compile can read it
_log = logging.getLogger("mambabyte")


@dataclass(frozen=True)
class Backend:
    """One implementation of one op on this machine, for `mambabyte doctor`."""

    op: str
    name: str
    available: bool
    reason: str


def describe_backends() -> list[Backend]:
    """Every backend of every op, whether it can be used here and why."""
    compiled, reason = build.available()
    found = []
    for op in OPS:
        found.append(Backend(op, "reference", True, "plain PyTorch, any device, fp64 too"))
        found.append(Backend(op, "cpu", compiled, reason))
    return found


@functools.cache
def _say_once(message: str) -> None:
    _log.warning(message)


def backend_for(device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that ops use for tensors of this device and dtype when nobody asks for another."""
    if device.type != "cpu" or dtype not in _KERNEL_DTYPES:
        return "reference"
    compiled, reason = build.available()
    if compiled:
        return "cpu"
    _say_once(f"using the reference scan, tens of times slower than the fused CPU kernel: {reason}")
    return "reference"


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Within the block every op runs on the named backend, where the call itself names none."""
    global _override
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def choose_backend(op: str, device: torch.device, dtype: torch.dtype, asked: str | None) -> str:
    """The backend for one call: the one asked for if it can serve these tensors, else the fastest that can.

    Raises:
        ValueError: the backend asked for does not exist or cannot serve tensors of this device and dtype.
    """
    asked = asked or _override
    if asked is None:
        return backend_for(device, dtype)
    if asked == "reference":
        return asked
    if asked != "cpu":
        raise ValueError(f"{op} has no backend {asked!r}; there are reference and cpu")
    if device.type != "cpu" or dtype not in _KERNEL_DTYPES:
        raise ValueError(
            f"{op}'s cpu backend serves fp32, bf16 and fp16 tensors on the CPU, not {dtype} on {device.type}"
        )
    compiled, reason = build.available()
    if not compiled:
        raise ValueError(f"{op}'s cpu backend is not available: {reason}")
    return asked
