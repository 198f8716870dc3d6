"""The CUDA kernels of the selective scan compiled for this CPU (see fibers.h), in place of a CUDA module."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from mambabyte.ops.cpu.build import find_compiler
from mambabyte.ops.cuda import compile
from mambabyte.ops.selective_scan.cuda import ELEMENTS, Arguments

HERE = Path(__file__).parent
COMPILER = find_compiler() if sys.platform == "linux" else None  # whose C library has contexts
_folder = tempfile.TemporaryDirectory(prefix="mambabyte-fibers-")


class Module:
    """As `mambabyte.ops.cuda.launch.Module`, for tensors in the memory of the CPU."""

    backwards = False  # the last warp and lane first
    ignored = ("", 0)  # file and line of a barrier to leave out

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def size(self, variable: str) -> int:
        return getattr(self._library, f"size_of_{variable}")()

    def launch(
        self, name: str, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure
    ) -> None:
        file, line = self.ignored
        settings = int(self.backwards), file.encode(), line
        sizes = (ctypes.c_uint * 3)(*grid)
        ran = self._library.run(name.encode(), sizes, threads, ctypes.byref(arguments), *settings)
        assert ran == 0, f"no kernel {name}"


@functools.cache
def emulated_kernels(device: torch.device, dtype: torch.dtype, states: int) -> Module:
    """Stands in for `mambabyte.ops.selective_scan.cuda.kernels`."""
    library = Path(_folder.name) / f"{ELEMENTS[dtype]}-{states}.so"
    subprocess.run(
        [
            str(COMPILER), "-O1", "-std=c++17", "-shared", "-fPIC", "-w", f"-I{compile.HERE}", f"-I{HERE}",
            "-U_FORTIFY_SOURCE",  # which takes a jump to another stack for an attack
            "-DMAMBABYTE_FIBERS", f"-DSTATES={states}", f"-DELEMENT={ELEMENTS[dtype]}",
            str(HERE / "selective_scan.cpp"), "-o", str(library),
        ],
        check=True,
    )  # fmt: skip
    loaded = ctypes.CDLL(str(library))
    assert loaded.size_of_selective_scan_arguments() == ctypes.sizeof(Arguments), "the same in Python and C++"
    return Module(loaded)
