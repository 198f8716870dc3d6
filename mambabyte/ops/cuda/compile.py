"""Compiles the CUDA sources with NVRTC and keeps the result.

NVRTC is NVIDIA's compiler as a library; `pip install nvidia-cuda-nvrtc` brings it, as PyTorch's CUDA builds
do. What it makes is cached per user beside the CPU kernels, under a key of the sources, the options, the
architecture and the compiler's version.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import tempfile
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from mambabyte.ops.cpu.build import KernelUnavailable, writable_cache_folder

HERE = Path(__file__).parent
OPTIONS = ("--std=c++17",)


def compile_cubin(source: str, architecture: str, **macros: object) -> bytes:
    """The compiled module of one of this folder's sources, from the cache or compiled into it.

    Args:
        source: the file's name.
        architecture: as in "sm_90".
        macros: what to define.

    Raises:
        KernelUnavailable: there is no NVRTC, it does not compile the source, or the result cannot be stored.
    """
    options = (*OPTIONS, f"--gpu-architecture={architecture}", *(f"-D{k}={v}" for k, v in macros.items()))
    key = hashlib.sha256(repr((source, options, _version())).encode())
    for path in sorted(HERE.glob("*.cu*")):
        key.update(path.read_bytes())
    name = f"{Path(source).stem}-{key.hexdigest()[:16]}"
    try:
        folder = writable_cache_folder()
        for path in folder.glob(f"{name}-*.cubin"):
            binary = path.read_bytes()
            if path.name == _file_name(name, binary):
                return binary
            path.unlink(missing_ok=True)
        binary = _compile(source, architecture, options)
        with tempfile.TemporaryDirectory(
            dir=folder, prefix="building-", ignore_cleanup_errors=True
        ) as scratch:
            written = Path(scratch) / "kernel.cubin"
            with open(written, "wb") as file:
                file.write(binary)
                os.fsync(file.fileno())
            os.replace(written, folder / _file_name(name, binary))
        return binary
    except OSError as error:
        raise KernelUnavailable(f"the compiled CUDA kernels cannot be stored ({error})") from None


def available() -> tuple[bool, str]:
    """Whether there is a compiler, and which, or why not."""
    try:
        major, minor = _version()
    except KernelUnavailable as error:
        return False, str(error)
    return True, f"NVRTC {major}.{minor}"


def _file_name(name: str, binary: bytes) -> str:
    """With a digest of the content: a file that was cut short must not be loaded."""
    return f"{name}-{hashlib.sha256(binary).hexdigest()[:16]}.cubin"


def _candidates() -> list[str]:
    """Where libnvrtc may be: in NVIDIA's packages, where the loader looks, and in the toolkit's folders."""
    package = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (package.submodule_search_locations if package else None) or ()]
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    files = [file for place in places for file in sorted(place.glob("*/lib/libnvrtc.so.*"), reverse=True)]
    files += sorted(Path(toolkit).glob("lib64/libnvrtc.so*"))
    found = find_library("nvrtc")
    return [*(str(file) for file in files), *([found] if found else [])]


@functools.cache
def _library() -> ctypes.CDLL | str:
    """NVRTC, or why there is none."""
    message = "no NVRTC found (pip install nvidia-cuda-nvrtc, or set CUDA_HOME)"
    for candidate in _candidates():
        try:
            if os.path.isabs(candidate):
                for part in Path(candidate).parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(
                        str(part)
                    )  # NVRTC opens it by its name alone, which finds what is loaded already
            return ctypes.CDLL(candidate)
        except OSError as error:
            message = f"NVRTC cannot be loaded ({error})"
    return message


def _call(name: str, *arguments: Any) -> int:
    library = _library()
    if isinstance(library, str):
        raise KernelUnavailable(library)
    return getattr(library, name)(*arguments)


@functools.cache
def _version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _compile(source: str, architecture: str, options: tuple[str, ...]) -> bytes:
    headers = sorted(HERE.glob("*.cuh"))
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*(header.read_bytes() for header in headers))
    names = (ctypes.c_char_p * len(headers))(*(header.name.encode() for header in headers))
    text = (HERE / source).read_bytes()
    _call("nvrtcCreateProgram", ctypes.byref(program), text, source.encode(), len(headers), texts, names)
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if _call("nvrtcCompileProgram", program, len(options), words):
            log = _output(program, "ProgramLog").decode(errors="replace").rstrip("\0").strip()
            first = next((line for line in log.splitlines() if "error" in line), log or "no message")
            version = ".".join(map(str, _version()))
            raise KernelUnavailable(
                f"NVRTC {version} could not compile {source} for {architecture} ({first})"
            )
        return _output(program, "CUBIN")
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


def _output(program: ctypes.c_void_p, kind: str) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{kind}", program, buffer)
    return buffer.raw
