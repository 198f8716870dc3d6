"""Loads compiled CUDA modules through the driver's library and launches their kernels on PyTorch's stream."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

from mambabyte.ops.cpu.build import KernelUnavailable

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CARVEOUT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent of what a multiprocessor has
_NOT_FOUND = 500  # CUDA_ERROR_NOT_FOUND


@functools.cache
def _driver() -> ctypes.CDLL | str:
    """The driver's library, or why there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"the CUDA driver's library cannot be loaded ({error})"


def available() -> tuple[bool, str]:
    """Whether there is a driver and a device that the kernels can run on, and why or why not."""
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    if isinstance(driver := _driver(), str):
        return False, driver
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return False, f"compute capability {major}.{minor} is below 8.0, whose asynchronous copies they use"
    return True, f"compute capability {major}.{minor}"


def _call(name: str, *arguments: Any) -> int:
    driver = _driver()
    if isinstance(driver, str):
        raise KernelUnavailable(driver)
    code = getattr(driver, name)(*arguments)
    if code not in (0, _NOT_FOUND):
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        raise KernelUnavailable(f"{name} failed: {(text.value or b'error %d' % code).decode()}")
    return code


class Module:
    """A compiled module on one device.

    A kernel `name` gets 16 times as much dynamic shared memory as the size of the module's variable
    `name_shared`, and none where there is no such variable.

    Raises:
        KernelUnavailable: the driver refuses the module; when launching, that it refuses the launch.
    """

    def __init__(self, binary: bytes, device: torch.device) -> None:
        self._context, self._module = ctypes.c_void_p(), ctypes.c_void_p()
        self._kernels: dict[str, tuple[ctypes.c_void_p, int]] = {}
        self._sizes: dict[str, int] = {}
        number = ctypes.c_int()
        torch.cuda.init()
        _call("cuInit", 0)
        _call("cuDeviceGet", ctypes.byref(number), device.index)
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), number)  # the one that PyTorch uses
        self._device = device
        with self:
            _call("cuModuleLoadData", ctypes.byref(self._module), binary)

    def __enter__(self) -> None:
        _call("cuCtxPushCurrent_v2", self._context)

    def __exit__(self, *_: object) -> None:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def size(self, variable: str) -> int:
        """The size of a variable in bytes; 0 where there is none."""
        if variable not in self._sizes:
            address, size = ctypes.c_void_p(), ctypes.c_size_t()
            with self:
                arguments = ctypes.byref(address), ctypes.byref(size), self._module, variable.encode()
                self._sizes[variable] = 0 if _call("cuModuleGetGlobal_v2", *arguments) else size.value
        return self._sizes[variable]

    def _kernel(self, name: str) -> tuple[ctypes.c_void_p, int]:
        if name not in self._kernels:
            kernel, shared = ctypes.c_void_p(), 16 * self.size(f"{name}_shared")
            with self:
                if _call("cuModuleGetFunction", ctypes.byref(kernel), self._module, name.encode()):
                    raise KernelUnavailable(f"the module has no kernel {name}")
                if shared:
                    _call("cuFuncSetAttribute", kernel, _MAX_DYNAMIC_SHARED, shared)
                    _call("cuFuncSetAttribute", kernel, _CARVEOUT, 100)
            self._kernels[name] = kernel, shared
        return self._kernels[name]

    def launch(
        self, name: str, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure
    ) -> None:
        """Launch a kernel, which takes one structure, on a grid of blocks and on PyTorch's stream."""
        kernel, shared = self._kernel(name)
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        with self:
            _call("cuLaunchKernel", kernel, *grid, threads, 1, 1, shared, stream, parameters, None)
