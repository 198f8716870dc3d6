"""What a compiled CUDA module says about itself: the resources of its kernels and the sizes of its variables.

A cubin is a 64-bit ELF file. Each kernel's resources are attributes in the section `.nv.info`, as
`cuobjdump -elf` shows: a format byte, an attribute byte and, in the format that these attributes have, a
size, the number of the kernel's symbol and a value. Spilled registers and local arrays are on the stack.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

_SIZED, _REGISTERS, _FRAME = 0x04, 0x2F, 0x11
_SYMBOL_TABLE, _VARIABLE, _FUNCTION = 2, 1, 2


@dataclass(frozen=True)
class Kernel:
    registers: int  # of a thread
    stack: int  # bytes of a thread


@dataclass(frozen=True)
class Cubin:
    kernels: dict[str, Kernel] = field(default_factory=dict)
    variables: dict[str, int] = field(default_factory=dict)  # sizes in bytes


def read_cubin(binary: bytes) -> Cubin:
    """Read an ELF file of NVIDIA's.

    Raises:
        ValueError: it is none.
    """
    if binary[:5] != b"\x7fELF\x02":
        raise ValueError("this is not a 64-bit ELF file")
    try:
        return _read(binary)
    except (struct.error, IndexError, KeyError, StopIteration) as error:
        raise ValueError(f"this ELF file is damaged, or not NVIDIA's ({error!r})") from None


def _read(binary: bytes) -> Cubin:
    (table,) = struct.unpack_from("<Q", binary, 40)
    entry, count, names = struct.unpack_from("<HHH", binary, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", binary, table + k * entry) for k in range(count)]

    def content(header: tuple[int, ...]) -> bytes:
        return binary[header[4] : header[4] + header[5]]

    def text(strings: bytes, start: int) -> str:
        return strings[start : strings.index(b"\0", start)].decode()

    sections = {text(content(headers[names]), header[0]): header for header in headers}
    symbols = next(header for header in headers if header[1] == _SYMBOL_TABLE)
    strings = content(headers[symbols[6]])
    found = []
    for name, info, _, section, _, size in struct.iter_unpack("<IBBHQQ", content(symbols)):
        found.append((text(strings, name), info & 15, section, size))
    attributes: dict[tuple[int, int], int] = {}
    information, place = content(sections[".nv.info"]), 0
    while place < len(information):
        form, attribute, size = struct.unpack_from("<BBH", information, place)
        if form == _SIZED and size == 8:
            symbol, value = struct.unpack_from("<II", information, place + 4)
            attributes[symbol, attribute] = value
        place += 4 + (size if form == _SIZED else 0)
    return Cubin(
        {
            name: Kernel(attributes[number, _REGISTERS], attributes.get((number, _FRAME), 0))
            for number, (name, kind, section, _) in enumerate(found)
            if kind == _FUNCTION and section and (number, _REGISTERS) in attributes
        },
        {name: size for name, kind, section, size in found if kind == _VARIABLE and section},
    )
