"""Compiles the C++ kernels at first use and loads them.

The library is cached per user under a key of the sources, the compiler and the processor, so it is built once
per machine (in a few seconds) and never used on another kind of processor. The kernels use no PyTorch
headers: they get tensors as plain pointers. ``vector.h`` shapes them for AVX-512, AVX2 or plain 128-bit
registers; the environment variable ``MAMBABYTE_ISA`` builds one of the narrower shapes, so that each can be
tested and measured on a processor that has more.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCES = ("selective_scan.cpp", "causal_conv1d.cpp", "residual_norm.cpp", "mamba_step.cpp")
HEADERS = ("kernel.h", "vector.h")
# No -ffast-math: it would reassociate the rounding in exp2, and leave the whole process flushing denormals.
FLAGS = tuple(
    [
        "-O3",
        "-std=c++17",
        "-fPIC",
        "-shared",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        "-w",
    ]
)
TUNING = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ())
# What MAMBABYTE_ISA may name: the compiler's flag, and what the processor must have.
INSTRUCTION_SETS = {
    "avx512": ("-march=x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    "avx2": ("-march=x86-64-v3", {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}),
    "sse2": ("-march=x86-64", {"sse2"}),
}


class KernelUnavailable(RuntimeError):
    """The fused CPU kernels cannot be used here; the message says why in one line."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$XDG_CACHE_HOME/mambabyte`` or ``~/.cache/mambabyte``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mambabyte"


def find_compiler() -> str | None:
    """The first of ``$CXX``, c++, g++ and clang++ that is on the path."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


@functools.cache
def library() -> ctypes.CDLL:
    """Load the kernels, after compiling them if this machine has not done so yet.

    Raises:
        KernelUnavailable: no compiler, or the sources do not compile here.
    """
    compiler = find_compiler()
    if compiler is None:
        raise KernelUnavailable("no C++ compiler found (install g++ or clang++, or set CXX)")
    try:
        path = _cached_path(compiler)
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelUnavailable(f"the compiled kernels cannot be stored or loaded ({error})") from error


@functools.cache
def kernel(name: str, **structures: type[ctypes.Structure]) -> Any:
    """The C function `mambabyte_<name>`, after a check that the structures it reads have the size that the
    compiler gave them: `mambabyte_<structure>_size()` bytes, by the keyword's name.

    Raises:
        KernelUnavailable: as `library`.
        RuntimeError: the fields of a structure differ between Python and C++.
    """
    for structure, fields in structures.items():
        expected = getattr(library(), f"mambabyte_{structure}_size")()
        if ctypes.sizeof(fields) != expected:
            raise RuntimeError(
                f"the fields of {structure} differ between Python ({ctypes.sizeof(fields)} bytes) and C++ "
                f"({expected} bytes): make {fields.__module__} match the C++ source"
            )
    return getattr(library(), f"mambabyte_{name}")


def available() -> tuple[bool, str]:
    """Whether the kernels can be used, and why or why not in a few words."""
    try:
        library()
    except KernelUnavailable as error:
        return False, str(error)
    return True, f"compiled for {os.environ.get('MAMBABYTE_ISA', 'this processor')}"


def _cached_path(compiler: str) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        digest.update((HERE / name).read_bytes())
    digest.update(repr((FLAGS, _tuning(), version, _processor())).encode())
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        folder = Path(tempfile.gettempdir()) / f"mambabyte-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise KernelUnavailable(f"{folder} belongs to another user, and {cache_folder()} is not writable")
    return folder / f"kernels-{digest.hexdigest()[:16]}.so"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def available_instruction_sets() -> list[str]:
    """Those of `INSTRUCTION_SETS` that this processor has."""
    has = set(_processor().split())
    return [name for name, (_, needed) in INSTRUCTION_SETS.items() if needed <= has]


def _tuning() -> tuple[tuple[str, ...], ...]:
    """The compiler's flags to try: for this very processor, or for what MAMBABYTE_ISA names."""
    name = os.environ.get("MAMBABYTE_ISA")
    if name is None:
        return TUNING
    if name not in available_instruction_sets():
        known = ", ".join(available_instruction_sets()) or "none to choose from"
        raise KernelUnavailable(f"MAMBABYTE_ISA={name} is not what this processor has ({known})")
    flag = INSTRUCTION_SETS[name][0]
    return (flag, "-fopenmp"), (flag,)


def _compile(compiler: str, path: Path) -> None:
    message = ""
    for tuning in _tuning():
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
        os.close(handle)
        command = [compiler, *FLAGS, *tuning, *(str(HERE / name) for name in SOURCES), "-o", temporary]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            os.replace(temporary, path)  # another process may have built it meanwhile: either file will do
            return
        os.unlink(temporary)
        message = message or (result.stderr.strip().splitlines() or ["no message"])[0]
    raise KernelUnavailable(f"{compiler} could not compile the kernels ({message})")
