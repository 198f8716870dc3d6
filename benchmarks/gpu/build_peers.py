"""Builds mamba_ssm and causal_conv1d from the archives that `scripts/pack_gpu_check.sh` packed.

    python benchmarks/gpu/build_peers.py PACKED TARGET PACKAGE

What a measurement at bf16 or fp32 does not need is cut out of the unpacked sources first, since the whole
takes half an hour: other architectures than this device's, fp16 and complex numbers, B and C that do not
vary in time, convolutions of other widths than 4 or without SiLU. The kernels that are left are unchanged.
TARGET, on PYTHONPATH, then has the package and its extension; one that is there already is kept.
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from pathlib import Path

EXTENSIONS = {"causal_conv1d": "causal_conv1d_cuda", "mamba_ssm": "selective_scan_cuda"}
# A switch over a condition that is always true here, and an error where it is not.
ALWAYS = """
#define ALWAYS(COND, CONST_NAME, ...)                  \\
    [&] {                                              \\
        TORCH_CHECK(COND, #COND " was trimmed away");  \\
        constexpr bool CONST_NAME = true;              \\
        return __VA_ARGS__();                          \\
    }()
"""
SWITCHES = ("is_variable_B", "is_variable_C", "delta_softplus", "silu_activation")
DISPATCH = r"if \(\w+ == at::ScalarType::Half\) \{\s*\\\n.*?\} else (?=if)"
COMPLEX = r"\} else if \(\w+ == at::ScalarType::ComplexFloat\) \{\s*\\\n.*?(?=\} else \{)"
NVCC = [
    "-O3", "--use_fast_math", "--expt-relaxed-constexpr", "--expt-extended-lambda", "-lineinfo",
    *(f"-U__CUDA_NO_{kind}__" for kind in (
        "HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS", "BFLOAT16_CONVERSIONS",
        "BFLOAT162_OPERATORS", "BFLOAT162_CONVERSIONS",
    )),
]  # fmt: skip


def main(packed: Path, target: Path, package: str) -> None:
    extension = EXTENSIONS[package]
    if (target / f"{extension}.so").exists():
        return
    source = unpack(packed, package, target / "sources")
    files = trim(source / "csrc")
    shutil.copytree(source / package, target / package, dirs_exist_ok=True)
    if package == "mamba_ssm":
        # importing every model needs packages that Mamba-1 does without
        (target / package / "__init__.py").write_text("")
    build(extension, files, target)


def unpack(packed: Path, package: str, target: Path) -> Path:
    archives = sorted(packed.glob(f"{package}-*.tar.gz"))
    if not archives:
        raise SystemExit(f"{packed} has no archive of {package}: run scripts/pack_gpu_check.sh")
    with tarfile.open(archives[-1]) as archive:
        archive.extractall(target, filter="data")
    return target / archives[-1].name.removesuffix(".tar.gz")


def trim(folder: Path) -> list[Path]:
    """Cut the sources; return those to compile."""
    found = False
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
            path.write_text(trimmed(path.name, path.read_text()))
            found = found or path.name == "static_switch.h"
    if not found:
        raise SystemExit(f"{folder} has no static_switch.h: these sources are too new for this script")
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".cpp", ".cu") and not re.search(r"fp16|complex", path.name)
    ]


def trimmed(name: str, text: str) -> str:
    """A source file of either package without what is named above."""
    if name == "static_switch.h":
        return text + ALWAYS
    text = re.sub(DISPATCH, "", text, flags=re.DOTALL)
    text = re.sub(COMPLEX, "", text, flags=re.DOTALL)
    # explicit instantiations
    text = re.sub(r"^template void \w+<[^>]*(?:Half|complex)[^>]*>\([^;]*;", "", text, flags=re.MULTILINE)
    text = re.sub(rf"BOOL_SWITCH\((params\.(?:{'|'.join(SWITCHES)}),)", r"ALWAYS(\1", text)
    # the launches of other widths
    narrow = r"\w+_launch<\d+, [23], input_t, weight_t>\(params, stream\)"
    return re.sub(narrow, 'TORCH_CHECK(false, "this width was trimmed away")', text)


def build(extension: str, files: list[Path], target: Path) -> None:
    import torch
    from torch.utils.cpp_extension import load

    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}{minor}"
    folder = target / "building" / extension
    folder.mkdir(parents=True, exist_ok=True)
    load(
        extension, [str(path) for path in files], build_directory=str(folder), is_python_module=False,
        extra_cflags=["-O3"], extra_include_paths=[str(files[0].parent)],
        extra_cuda_cflags=[*NVCC, f"-gencode=arch=compute_{arch},code=sm_{arch}"],
    )  # fmt: skip
    (folder / f"{extension}.so").replace(target / f"{extension}.so")  # there whole, or not at all


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
