"""Tensors as the C structures that the kernels read."""

from __future__ import annotations

import ctypes
import mmap
import os

import torch
from torch import Tensor


class Rows(ctypes.Structure):
    """A (B, L, width) tensor whose last dimension is contiguous."""

    _fields_ = [("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("time_stride", ctypes.c_int64)]


def rows(tensor: Tensor | None) -> Rows:
    """Pointer and strides (in elements) of a (B, L, width) tensor; null for None."""
    if tensor is None:
        return Rows(None, 0, 0)
    return Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a contiguous tensor's data; null for None."""
    return None if tensor is None else tensor.data_ptr()


_HUGE_PAGE = 2 << 20
_libc = ctypes.CDLL(None)
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


def num_threads() -> int:
    """PyTorch's number of threads; 1 in a forked process, where OpenMP's threads are gone and one would wait
    for them for ever."""
    return 1 if _forked else torch.get_num_threads()


def empty(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """As `torch.empty`, on huge pages where it is large and the system has them.

    The allocator gives large tensors back to the system, and taking fresh memory in pages of 4 KB costs a
    third of a long scan's time.
    """
    tensor = torch.empty(shape, dtype=dtype)
    size = tensor.numel() * tensor.element_size()
    if size >= 4 * _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        begin = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        end = (tensor.data_ptr() + size) // _HUGE_PAGE * _HUGE_PAGE
        # Advice: where it is refused, the pages stay small.
        _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)
    return tensor


def as_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` with a contiguous last dimension, copied only where it has to be."""
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernels read for activations of `dtype`: bf16 as it is, everything else as fp32."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
