"""Tensors as the kernels read them, and the calls of the kernels."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, TypeVar

import torch
from torch import Tensor

from mambabyte.ops.cpu.build import kernel

MaybeTensor = TypeVar("MaybeTensor", bound=Tensor | None)


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    """Consecutive fields of one type in a C structure."""
    return [(name, kind) for name in names.split()]


class Rows(ctypes.Structure):
    """A (B, L, width) tensor whose last dimension is contiguous."""

    _fields_ = [("data", ctypes.c_void_p), *fields(ctypes.c_int64, "batch_stride time_stride")]


def call(op: str, direction: str, structure: type[ctypes.Structure], **values: Any) -> None:
    """Call `mambabyte_<op>_<direction>` on a structure of these values, with each tensor as a pointer or as
    `Rows`, whichever its field is; None and fields left out are null."""
    kinds = dict(structure._fields_)  # type: ignore[arg-type]
    arguments = structure()
    for name, value in values.items():
        if isinstance(value, Tensor):
            address = value.data_ptr()
            value = Rows(address, *value.stride()[:2]) if kinds[name] is Rows else address
        if value is not None:
            setattr(arguments, name, value)
    kernel(f"{op}_{direction}", **{f"{op}_arguments": structure})(ctypes.byref(arguments))


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a contiguous tensor's data, or null for None."""
    return None if tensor is None else tensor.data_ptr()


_HUGE_PAGE = 2 << 20
_libc = ctypes.CDLL(None)
_importing_process = os.getpid()


def num_threads() -> int:
    """PyTorch's number of threads, or 1 in a forked process: OpenMP's threads do not survive a fork, and
    waiting for them would never end."""
    return torch.get_num_threads() if os.getpid() == _importing_process else 1


def empty(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """As `torch.empty`, on huge pages if the tensor is large and the system has them.

    The allocator returns large tensors to the system, and faulting in fresh 4 KB pages takes a third of a
    long scan's time.
    """
    tensor = torch.empty(shape, dtype=dtype)
    size = tensor.numel() * tensor.element_size()
    if size >= 4 * _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        begin = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        end = (tensor.data_ptr() + size) // _HUGE_PAGE * _HUGE_PAGE
        # This is advice: if the system declines it, the pages stay small.
        _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)
    return tensor


def as_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` with a contiguous last dimension, copied only if necessary."""
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def contiguous(tensor: MaybeTensor, dtype: torch.dtype = torch.float32) -> MaybeTensor:
    """The tensor, if there is one, contiguous in `dtype`; marks as bytes are the same memory."""
    if tensor is not None and tensor.dtype == torch.bool and dtype == torch.uint8:
        return tensor.contiguous().view(torch.uint8)  # type: ignore[return-value]
    return tensor if tensor is None else tensor.to(dtype).contiguous()  # type: ignore[return-value]


def kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the kernels read activations of `dtype`: bf16 for bf16, fp32 for all others."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
