"""Compiles the C++ kernels at first use and loads them.

The library is cached per user under a key of the sources, the compiler and the processor, so it is built once
per machine (in a few seconds) and never used on another kind of processor. The kernels use no PyTorch
headers: they get tensors as plain pointers. ``vector.h`` shapes them for AVX-512, AVX2 or plain 128-bit
registers; the environment variable ``MAMBABYTE_ISA`` builds one of the narrower shapes, so that each can be
tested and measured on a processor that has more.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCES = ("selective_scan.cpp", "causal_conv1d.cpp", "residual_norm.cpp", "mamba_step.cpp", "ssd.cpp")
HEADERS = ("kernel.h", "vector.h", "mamba_step.h", "products.h", "ssd.h")
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
_BUILD = "building-"  # the folder of a compilation
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
    """Where compiled kernels are kept: ``$XDG_CACHE_HOME/mambabyte`` or ``~/.cache/mambabyte``. For a user
    without a home, in a container for example, it is a folder for temporary files."""
    caches, home = os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~")
    if not caches and home == "~":
        return _temporary_folder()
    return Path(caches or Path(home) / ".cache") / "mambabyte"


def find_compiler() -> str | None:
    """The first of ``$CXX``, c++, g++ and clang++ that is on the path."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def library() -> ctypes.CDLL:
    """Load the kernels, after compiling them if this machine has not done so yet.

    Raises:
        KernelUnavailable: no compiler, or the sources do not compile here. It is found out once per process.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise KernelUnavailable(loaded)
    return loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The kernels, or why they cannot be used."""
    compiler = find_compiler()
    if compiler is None:
        return "no C++ compiler found (install g++ or clang++, or set CXX)"
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except OSError as error:
        return f"the compiled kernels cannot be stored or loaded ({error})"
    except KernelUnavailable as error:
        return str(error)


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
    return True, f"compiled for {os.environ.get('MAMBABYTE_ISA') or 'this processor'}"


def _built(compiler: str) -> Path:
    """The library, from the cache or compiled into it.

    A digest of its content is part of its name: loading a file that was cut short would end the process.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        key.update((HERE / name).read_bytes())
    key.update(repr((FLAGS, _tuning(), version, _processor())).encode())
    name, folder = f"kernels-{key.hexdigest()[:16]}", writable_cache_folder()
    _remove_leftovers(folder)
    for path in folder.glob(f"{name}-*.so"):
        if path.name == _file_name(name, path):
            return path
        path.unlink(missing_ok=True)
    with _build_folder(folder) as scratch:
        built = _compile(compiler, scratch)
        path = folder / _file_name(name, built)
        os.replace(built, path)  # another process may have built it meanwhile: either file will do
    return path


def _file_name(name: str, library: Path) -> str:
    return f"{name}-{hashlib.sha256(library.read_bytes()).hexdigest()[:16]}.so"


def writable_cache_folder() -> Path:
    """`cache_folder`, or one for temporary files where that cannot be written.

    Raises:
        KernelUnavailable: neither can be used.
    """
    folder, temporary = cache_folder(), _temporary_folder()
    if folder != temporary:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    temporary.mkdir(mode=0o700, exist_ok=True)
    if temporary.stat().st_uid != os.getuid():
        raise KernelUnavailable(f"{temporary} belongs to another user, and {folder} is not writable")
    return temporary


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"mambabyte-{os.getuid()}"


@contextmanager
def _build_folder(cache: Path) -> Iterator[Path]:
    """A temporary folder in the cache, locked as long as this process lives, and removed at the end."""
    while True:
        with tempfile.TemporaryDirectory(prefix=_BUILD, dir=cache, ignore_cleanup_errors=True) as name:
            descriptor = os.open(name, os.O_RDONLY)
            try:
                with suppress(OSError):  # a file system without locks: what killed processes leave stays
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.path.exists(name):  # not taken for a leftover before it was locked
                    yield Path(name)
                    return
            finally:
                os.close(descriptor)


def _remove_leftovers(cache: Path) -> None:
    """Remove the folders of processes that were killed while they compiled."""
    for folder in cache.glob(f"{_BUILD}*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


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
    if not name:
        return TUNING
    if name not in available_instruction_sets():
        known = ", ".join(available_instruction_sets()) or "none to choose from"
        raise KernelUnavailable(f"MAMBABYTE_ISA={name} is not what this processor has ({known})")
    flag = INSTRUCTION_SETS[name][0]
    return (flag, "-fopenmp"), (flag,)


def _compile(compiler: str, folder: Path) -> Path:
    """Compile the sources to a file in ``folder``, where the compiler keeps its own temporary files too."""
    message, built = "", folder / "kernels.so"
    environment = {**os.environ, "TMPDIR": str(folder)}
    for tuning in _tuning():
        command = [compiler, *FLAGS, *tuning, *(str(HERE / name) for name in SOURCES), "-o", str(built)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if result.returncode == 0:
            with open(built, "rb") as file:
                os.fsync(file.fileno())
            return built
        message = message or (result.stderr.strip().splitlines() or ["no message"])[0]
    raise KernelUnavailable(f"{compiler} could not compile the kernels ({message})")
