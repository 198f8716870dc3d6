"""The step's Triton kernels, as it launches them, compiled for GPUs that this machine need not have."""

import pytest
import torch

from mambabyte.models import MambaByteConfig
from tests.ops.interpreter import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")

from mambabyte.ops.step.drawing import draw_launch  # noqa: E402
from mambabyte.ops.step.triton import Launch, TritonStep  # noqa: E402

if not INTERPRETED:
    from tests.ops import triton_compilation as compilation

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


def as_launched(launch):
    """A launch of the step's list, for the compiler."""
    arguments = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.constants
    return compilation.Launch(launch.kernel, arguments, {"num_warps": launch.warps})


@pytest.mark.parametrize("name", CASES)
def test_every_launch_compiles_without_spills(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    *case, capabilities = CASES[name]
    found = {}
    for launch in map(as_launched, launches(*case)):
        for capability in capabilities:
            key = (launch.name, capability, launch.source().hash())
            if key in found:
                continue
            usage = found[key] = compilation.compiled(launch, capability, tmp_path)
            assert usage.stack <= STACK, (key, usage)
            assert usage.registers <= REGISTERS.get(launch.name, 128), (key, usage)
            assert usage.shared <= 32768, (key, usage)  # at most 48 KB are free to take
    kernels = {key[0] for key in found}
    road = {"matvec_kernel"} if case[2] <= 4 else {"norm_kernel"}
    assert kernels == {"embed_kernel", "conv_kernel", "scan_kernel", "sample_kernel"} | road
