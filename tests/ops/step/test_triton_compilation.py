"""The step's Triton kernels, as it launches them, compiled for GPUs that this machine need not have."""

import os
import re
import subprocess

import pytest
import torch

from mambabyte.models import MambaByteConfig

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mambabyte.ops.step.drawing import draw_launch  # noqa: E402
from mambabyte.ops.step.triton import Launch, TritonStep  # noqa: E402

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float64: "*fp64", torch.int64: "*i64",
         torch.int16: "*i16"}  # fmt: skip
# 972M and, with n-grams, 1.6B. A program's threads share 65,536 registers: at 128 each, two programs of eight
# warps run side by side on a multiprocessor.
CASES = {
    "972m_alone": (1792, 1, 1, "bf16", (80, 90, 100)),
    "972m_batch": (1792, 1, 256, "bf16", (90,)),
    "1_6b_few_in_fp32": (2304, 6, 4, "fp32", (80,)),
}
REGISTERS = {"sample_kernel": 208, "conv_kernel": 208}  # one program for each row; about 60 of them
STACK = 16  # bytes: ptxas lays a value or four on the stack where that lets another program fit


def launches(d_model, ngram, batch, storage):
    """Those of a step of a model of this width and of the draw before it, on tensors without memory."""
    with torch.device("meta"):
        model = MambaByteConfig(d_model=d_model, n_layer=2, ngram=ngram).build().requires_grad_(False)
        step = TritonStep(model.step_weights(), model._embedding_weights(), batch, storage)
        position, drawn = torch.empty(batch, dtype=torch.int64), torch.empty(64, batch, dtype=torch.int16)
    draw = draw_launch(step.logits, step.symbols, position, drawn, 0.8, None, None, 0)
    return [launch for launch in (*step.launches, draw) if isinstance(launch, Launch)]


def source(launch):
    """The kernel specialised as Triton does for the launch's arguments."""
    signature, constants, aligned = {}, {}, {}
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False)) | launch.constants
    for index, (name, value) in enumerate((name, values[name]) for name in names):
        if name in launch.constants or value is None or (type(value) is int and value == 1):
            signature[name], constants[index,] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            if isinstance(value, torch.Tensor) or value % 16 == 0:
                aligned[index,] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, aligned)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("name", CASES)
def test_every_launch_compiles_without_spills(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    *case, capabilities = CASES[name]
    found = {}
    for launch in launches(*case):
        specialised, kernel = source(launch), launch.kernel.__name__
        for capability in capabilities:
            key = (kernel, capability, *map(str, (specialised.signature, specialised.constants)))
            if key in found:
                continue
            target = GPUTarget("cuda", capability, 32)
            compiled = triton.compile(specialised, target=target, options={"num_warps": launch.warps})
            path = tmp_path / "kernel.cubin"
            path.write_bytes(compiled.asm["cubin"])
            tool = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
            usage = subprocess.run(tool, check=True, capture_output=True, text=True).stdout
            registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
            found[key] = registers
            assert stack <= STACK and registers <= REGISTERS.get(kernel, 128), (kernel, capability, usage)
            assert compiled.metadata.shared <= 32768  # at most 48 KB are free to take
    kernels = {key[0] for key in found}
    road = {"matvec_kernel"} if case[2] <= 4 else {"norm_kernel"}
    assert kernels == {"embed_kernel", "conv_kernel", "scan_kernel", "sample_kernel"} | road
