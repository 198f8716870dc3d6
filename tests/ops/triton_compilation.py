"""Compiles Triton kernels for GPUs that this machine need not have, as a launcher of ours launches them.

`recorded` replaces a launcher's kernels with recorders and runs it on tensors without memory, of the sizes
that the program has. Each launch is then compiled by Triton's own compiler and assembler, with the types,
constants and alignments that Triton would derive from the arguments; the machine code says what it needs.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8",
    torch.int32: "i32", torch.int64: "i64", torch.bool: "i1", torch.int8: "i8", torch.int16: "i16",
    torch.float64: "fp64",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments of one launch."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__

    def source(self) -> ASTSource:
        """The kernel, specialised as `kernel[grid](*arguments)` would be."""
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            aligned = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = f"*{TYPES[value.dtype]}"
                aligned = aligned and value.storage_offset() * value.element_size() % 16 == 0
            elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
                signature[parameter.name], constants[index,], aligned = "constexpr", value, False
            elif isinstance(value, int):
                signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                aligned = aligned and value % 16 == 0
            else:
                signature[parameter.name], aligned = "fp32", False
            if aligned:
                attributes[index,] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)


class _Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def record(*arguments: Any, **named: Any) -> None:
            names = self.kernel.arg_names
            values = dict(zip(names, arguments, strict=False))
            values.update((name, value) for name, value in named.items() if name in names)
            options = {name: value for name, value in named.items() if name not in names}
            self.launches.append(Launch(self.kernel, values, options))

        return record


def recorded(launch: Callable[[], Any], *modules: Any) -> list[Launch]:
    """The launches that `launch` makes of the kernels that are names of these modules, as on an H100: one of
    those that need the same machine code."""
    launches: list[Launch] = []
    found = [(m, n, k) for m in modules for n, k in vars(m).items() if isinstance(k, JITFunction)]
    patches = [patch.object(module, name, _Recorder(kernel, launches)) for module, name, kernel in found]
    patches += [
        patch.object(m, "multiprocessors", lambda _: 132) for m in modules if hasattr(m, "multiprocessors")
    ]
    for each in patches:
        each.start()
    try:
        launch()
    finally:
        for each in patches:
            each.stop()
    return list({(each.source().hash(), *each.options.items()): each for each in launches}.values())


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel needs: registers and bytes of stack (spilled registers) of a thread, bytes of
    shared memory of a program; the bytes of a lane's widest load; and how many instructions in innermost
    loops move spilled registers."""

    registers: int
    stack: int
    shared: int
    load: int
    spills_in_loops: int


def compiled(launch: Launch, capability: int, folder: Path) -> Usage:
    """Compile for sm_<capability>, keeping files in `folder`."""
    kernel = triton.compile(launch.source(), target=GPUTarget("cuda", capability, 32), options=launch.options)
    path = folder / f"{launch.name}_{capability}.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    spills = 0
    if found["STACK"]:
        spills = spills_in_loops(
            subprocess.run([tool, "-sass", path], check=True, capture_output=True, text=True).stdout
        )
    return Usage(found["REG"], found["STACK"], kernel.metadata.shared, widest_load(kernel.asm["ptx"]), spills)


def widest_load(ptx: str) -> int:
    """Bytes of the widest load from global memory, into registers or past them into shared memory."""
    loads = re.findall(r"\bld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s", ptx)
    copies = re.findall(r"\bcp\.async\.\S+\s\[[^\]]*\], *\[[^\]]*\], *(\w+)", ptx)
    return max([int(n or 1) * int(bits) // 8 for n, bits in loads] + [int(size, 0) for size in copies])


def spills_in_loops(sass: str) -> int:
    """Loads and stores of the stack inside innermost loops of a disassembly."""
    lines = [(int(a, 16), text) for a, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", sass)]
    jumps = [(int(m[1], 16), a) for a, text in lines if (m := re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text))]
    loops = [(target, end) for target, end in jumps if target < end]
    innermost = [
        (first, end)
        for first, end in loops
        if not any(first <= f and e <= end and (f, e) != (first, end) for f, e in loops)
    ]
    spills = [a for a, text in lines if re.search(r"\b(LDL|STL)\b", text)]
    return sum(any(first <= a <= end for first, end in innermost) for a in spills)
