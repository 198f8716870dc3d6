"""Which backend an op uses, and why.

    cpu         our C++ kernels: CPU tensors in fp32, bf16 and fp16; compiled at first use
    cuda        our CUDA C++ kernels: CUDA tensors in the same dtypes; compiled at first use; the scan only,
                up to 128 states
    triton      our Triton kernels: CUDA tensors in the same dtypes
    mamba_ssm   mamba_ssm's kernels: as triton, but without initial states and document starts
    reference   plain PyTorch: any device, fp64 too

A call that names no backend gets the first of its op's in `BACKENDS` that is available on this machine,
serves the tensors' device and dtype and can do what the call asks, unless `use_backend` or MAMBABYTE_BACKEND
names another one that does. One line of the log says which is passed over for what a call asks. A backend's
module may say what it cannot do by a function

    cannot_serve(dtype=, **asked) -> why not, or None

whose arguments are the tensors' dtype and whatever its op passes to `choose_backend`, such as
document_start=True for a call with document starts.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from mambabyte.ops.cpu import build

# Each op's backends in order of preference, the fastest first. On CUDA, ours come before mamba_ssm because
# only they take initial states and document starts and give the same gradients from run to run.
BACKENDS = {
    "selective_scan": ("cpu", "cuda", "triton", "mamba_ssm", "reference"),
    "causal_conv1d": ("cpu", "triton", "reference"),
    "residual_norm": ("cpu", "triton", "reference"),
    "mamba_step": ("cpu", "triton", "reference"),
    "ssd": ("cpu", "triton", "reference"),
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


def _objection(op: str, name: str, dtype: torch.dtype, asked: dict[str, Any]) -> str | None:
    """Why a backend that is available cannot do what a call asks; None if it can, or nothing is asked."""
    if name == "reference" or not asked:
        return None
    module = import_module(f"mambabyte.ops.{'step' if op == 'mamba_step' else op}.{name}")
    cannot_serve = getattr(module, "cannot_serve", None)
    return None if cannot_serve is None else cannot_serve(dtype=dtype, **asked)


# Tells torch.compile to treat these results as constants. torch.compiler.assume_constant_result sets the same
# mark, but imports the compiler, which takes a second.
_available._dynamo_marked_constant = True  # type: ignore[attr-defined]
_objection._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _serves(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    if name == "reference":
        return True
    served = "cpu" if name == "cpu" else "cuda"
    return dtype in _KERNEL_DTYPES and device.type == served and _available(name)[0]


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def backend_for(
    device: torch.device, dtype: torch.dtype = torch.float32, op: str = "selective_scan", **asked: Any
) -> str:
    """The backend that an op uses for tensors of this device and dtype if the call names none.

    Args:
        asked: what the call asks beyond that, as its op passes it to `choose_backend`; by default nothing.
    """
    if _override is not None and _override not in _NAMES:
        _warn_once(f"MAMBABYTE_BACKEND={_override} names no backend and is ignored")
    names = (_override, *BACKENDS[op]) if _override in BACKENDS[op] else BACKENDS[op]
    passed_over = None
    for chosen in names:
        if _serves(chosen, device, dtype):
            objection = _objection(op, chosen, dtype, asked)
            if objection is None:
                break
            passed_over = passed_over or f"{chosen} cannot serve: {objection}"
    if torch.compiler.is_compiling():
        return chosen
    if passed_over is not None:
        _warn_once(f"using the {chosen} {op} where {passed_over}")
    elif chosen == "reference" != _override and dtype in _KERNEL_DTYPES:
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


def choose_backend(
    op: str, device: torch.device, dtype: torch.dtype, backend: str | None, **asked: Any
) -> str:
    """The backend for one call: `backend` if given, else `backend_for` the tensors and what the call asks.

    Args:
        asked: numbers, strings, booleans and dtypes, for each backend's `cannot_serve`.

    Raises:
        ValueError: `backend` does not exist, or cannot serve tensors of this device and dtype or this call.
    """
    if backend is None:
        return backend_for(device, dtype, op, **asked)
    if backend not in BACKENDS[op]:
        raise ValueError(f"{op} has no backend {backend!r}; there are {', '.join(BACKENDS[op])}")
    if _serves(backend, device, dtype):
        reason = _objection(op, backend, dtype, asked)
    else:
        available, reason = _available(backend)
        if available:
            reason = f"it serves fp32, bf16 and fp16 tensors of its device, not {dtype} on {device.type}"
    if reason is not None:
        raise ValueError(f"{op} cannot run on its {backend} backend: {reason}")
    return backend
