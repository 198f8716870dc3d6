"""NVRTC compiles the kernels for the devices that are meant, within their resources; no device is needed."""

import functools
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from mambabyte.ops.cpu.build import KernelUnavailable
from mambabyte.ops.cuda import compile
from tests.ops.cuda.cubin import read_cubin

nvrtc = pytest.mark.skipif(not compile.available()[0], reason=compile.available()[1])
# All that the program's own models use (16 states) for three generations of data-centre devices; each other
# number of states and type once.
SPECIALISATIONS = [
    ("sm_80", "bfloat16", 16), ("sm_90", "bfloat16", 16), ("sm_100", "bfloat16", 16), ("sm_90", "float", 16),
    ("sm_90", "float16", 16), ("sm_90", "bfloat16", 8), ("sm_90", "bfloat16", 32), ("sm_90", "float", 64),
    ("sm_90", "float", 128),
]  # fmt: skip
# Shared memory of a multiprocessor, and what each block takes of it beside its own (CUDA's programming guide,
# table of technical specifications): two blocks must fit. The smallest devices from 8.0 on give it 99 KB.
MULTIPROCESSOR = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
RESERVED, BLOCK = 1 << 10, 99 << 10
# A few registers, saved and read at most once in a tile of 32 steps.
OUTSIDE_INNER_LOOPS = 16


@functools.cache
def compiled(architecture: str, element: str, states: int) -> bytes:
    return compile.compile_cubin("selective_scan.cu", architecture, STATES=states, ELEMENT=element)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache, the same for all tests."""
    folder = tmp_path_factory.getbasetemp() / "cuda-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "mambabyte"


def spills_in_inner_loops(binary: bytes, kernel: str, folder: Path) -> list[str]:
    """Accesses to the stack in the loops of a kernel but for the longest, which goes over tiles."""
    tools = Path(importlib.util.find_spec("triton").origin).parent / "backends" / "nvidia" / "bin"
    (folder / "kernel.cubin").write_bytes(binary)
    command = [str(tools / "cuobjdump"), "-sass", "-fun", kernel, str(folder / "kernel.cubin")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [
        (int(place, 16), word) for place, word in re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+(.*?);", text, re.M)
    ]
    jumps = [
        (int(m[1], 16), place) for place, word in code if (m := re.search(r"\bBRA\b.*0x([0-9a-f]+)", word))
    ]
    loops = sorted((end - begin, begin, end) for begin, end in jumps if begin < end)
    assert len(loops) > 1, "the loops were found"
    inner = [(begin, end) for _, begin, end in loops[:-1]]
    accesses = [(place, word) for place, word in code if re.search(r"\b(LDL|STL)\b", word)]
    assert accesses, "the accesses were found"
    return [word for place, word in accesses if any(begin <= place <= end for begin, end in inner)]


@nvrtc
@pytest.mark.parametrize(("architecture", "element", "states"), SPECIALISATIONS)
def test_two_blocks_fit_a_multiprocessor_and_no_inner_loop_spills(architecture, element, states, tmp_path):
    binary = compiled(architecture, element, states)
    cubin = read_cubin(binary)
    assert len(cubin.kernels) == 7
    for name, kernel in cubin.kernels.items():
        assert kernel.registers <= 65536 // (2 * 256), name
        shared = 16 * cubin.variables.get(f"{name}_shared", 0)
        assert shared <= BLOCK, name
        if (architecture, element) != ("sm_80", "float"):
            assert 2 * (shared + RESERVED) <= MULTIPROCESSOR[architecture], name
        if kernel.stack:
            assert kernel.stack <= OUTSIDE_INNER_LOOPS, name
            pytest.importorskip("triton", reason="its package has the disassembler")
            assert spills_in_inner_loops(binary, name, tmp_path) == [], name


@nvrtc
def test_a_module_is_compiled_once_and_a_damaged_file_again(cache, monkeypatch):
    binary = compiled(*SPECIALISATIONS[1])
    calls = []
    monkeypatch.setattr(compile, "_compile", lambda *options: calls.append(options) or binary)
    arguments = {"STATES": SPECIALISATIONS[1][2], "ELEMENT": SPECIALISATIONS[1][1]}
    assert compile.compile_cubin("selective_scan.cu", "sm_90", **arguments) == binary and not calls
    (kept,) = (path for path in cache.iterdir() if path.read_bytes() == binary)
    kept.write_bytes(binary[:1000])
    assert compile.compile_cubin("selective_scan.cu", "sm_90", **arguments) == binary and len(calls) == 1
    assert kept.read_bytes() == binary
    assert all(path.suffix == ".cubin" for path in cache.iterdir()), "no temporary folder is left"


@nvrtc
def test_what_nvrtc_refuses_is_one_line():
    with pytest.raises(
        KernelUnavailable, match=r"^NVRTC [\d.]+ could not compile selective_scan.cu for sm_12 \(.+\)$"
    ):
        compile.compile_cubin("selective_scan.cu", "sm_12", STATES=16, ELEMENT="float")
    with pytest.raises(KernelUnavailable, match=r"^NVRTC .* could not compile .*\(.*complex.*\)$"):
        compile.compile_cubin("selective_scan.cu", "sm_90", STATES=16, ELEMENT="complex")


def test_without_nvrtc_the_reason_says_what_to_install(monkeypatch, tmp_path):
    for candidates, reason in [
        ([], "no NVRTC found (pip install nvidia-cuda-nvrtc, or set CUDA_HOME)"),
        ([str(tmp_path / "libnvrtc.so.13")], "NVRTC cannot be loaded"),
    ]:
        monkeypatch.setattr(compile, "_candidates", lambda found=candidates: found)
        compile._library.cache_clear()
        compile._version.cache_clear()
        usable, said = compile.available()
        assert not usable and said.startswith(reason)
        with pytest.raises(KernelUnavailable, match="NVRTC"):
            compile.compile_cubin("selective_scan.cu", "sm_90", STATES=16, ELEMENT="float")
    compile._library.cache_clear()
    compile._version.cache_clear()


@pytest.mark.parametrize(
    "binary",
    [b"", b"#!/bin/sh", b"\x7fELF\x01" + bytes(100), b"\x7fELF\x02" + bytes(60), b"\x7fELF\x02" + bytes(20)],
    ids=["empty", "text", "32 bits", "no symbols", "cut short"],
)
def test_what_is_no_cubin_is_refused(binary):
    with pytest.raises(ValueError, match="ELF file"):
        read_cubin(binary)
