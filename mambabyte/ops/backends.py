"""Which backend an op uses, and why.

    cpu         our C++ kernels: CPU tensors in fp32, bf16 and fp16; compiled at first use
    cuda        our CUDA C++ kernels: CUDA tensors in the same dtypes; compiled at first use; the scan only,
                up to 128 states
    triton      our Triton kernels: CUDA tensors in the same dtypes; the scan only
    mamba_ssm   mamba_ssm's kernels: as triton, but without initial states and document starts
    reference   plain PyTorch: any device, fp64 too

A call that names no backend gets the first of its op's in `BACKENDS` that is available on this machine and
serves the tensors' device and dtype, unless `use_backend` or MAMBABYTE_BACKEND names another one that does.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import torch

from mambabyte.ops.cpu import build

# Each op's backends in order of preference, the fastest first. On CUDA, ours come before mamba_ssm because
# only they take initial states and document starts and give the same gradients from run to run.
BACKENDS = {
    "selective_scan": ("cpu", "cuda", "triton", "mamba_ssm", "reference"),
    "causal_conv1d": ("cpu", "reference"),
    "residual_norm": ("cpu", "reference"),
    "mamba_step": ("cpu", "reference"),
}
_NAMES = BACKENDS["selective_scan"]  # which has every backend that there is
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_override = os.environ.get("MAMBABYTE_BACKEND") or None  # a plain global, which torch.compile can read
_log = logging.getLogger("mambabyte")


@dataclass(frozen=True)
class Backend:
    """One implementation of one op, whether it can be used on this machine, and why or why not."""

    op: str
    name: str
    available: bool
    reason: str


def describe_backends() -> list[Backend]:
    """Every backend of every op, for `mambabyte doctor`."""
    return [Backend(op, name, *_available(name)) for op, names in BACKENDS.items() for name in names]


def _available(name: str) -> tuple[bool, str]:
    if name == "reference":
        return True, "plain PyTorch, any device, fp64 too"
    if name == "cpu":
        return build.available()
    return import_module(f"mambabyte.ops.selective_scan.{name}").available()


# Tells torch.compile to treat the result as a constant. torch.compiler.assume_constant_result sets the same
# mark, but imports the compiler, which takes a second.
_available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _serves(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    if name == "reference":
        return True
    served = "cpu" if name == "cpu" else "cuda"
    return dtype in _KERNEL_DTYPES and device.type == served and _available(name)[0]


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def backend_for(device: torch.device, dtype: torch.dtype = torch.float32, op: str = "selective_scan") -> str:
    """The backend that an op uses for tensors of this device and dtype if the call names none."""
    if _override is not None and _override not in _NAMES:
        _warn_once(f"MAMBABYTE_BACKEND={_override} names no backend and is ignored")
    if _override in BACKENDS[op] and _serves(_override, device, dtype):
        return _override
    chosen = next(name for name in BACKENDS[op] if _serves(name, device, dtype))
    if chosen == "reference" and dtype in _KERNEL_DTYPES and not torch.compiler.is_compiling():
        missing = {"cpu": "cpu", "cuda": "triton"}.get(device.type)
        if missing in BACKENDS[op]:
            reason = _available(missing)[1]
            _warn_once(f"using the reference {op}, tens of times slower than the {missing} kernel: {reason}")
    return chosen


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run ops on the named backend within the block: those that have it, where it serves the tensors and the
    call itself names no backend. The environment variable MAMBABYTE_BACKEND does so for a whole process.

    Raises:
        ValueError: no op has such a backend.
    """
    if name is not None and name not in _NAMES:
        raise ValueError(f"there is no backend {name!r}; there are {', '.join(_NAMES)}")
    global _override
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def choose_backend(op: str, device: torch.device, dtype: torch.dtype, asked: str | None) -> str:
    """The backend for one call: `asked` if given, else `backend_for` the tensors.

    Raises:
        ValueError: `asked` does not exist or cannot serve tensors of this device and dtype.
    """
    if asked is None:
        return backend_for(device, dtype, op)
    if asked not in BACKENDS[op]:
        raise ValueError(f"{op} has no backend {asked!r}; there are {', '.join(BACKENDS[op])}")
    if not _serves(asked, device, dtype):
        available, reason = _available(asked)
        if available:
            reason = f"it serves fp32, bf16 and fp16 tensors of its device, not {dtype} on {device.type}"
        raise ValueError(f"{op} cannot run on its {asked} backend: {reason}")
    return asked
