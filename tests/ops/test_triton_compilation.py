"""Every Triton kernel, compiled for GPUs by Triton's own compiler in the program's specialisations.

A bound on registers says how many warps a multiprocessor can hold; nothing may be spilled inside a loop.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mambabyte.ops.causal_conv1d.custom_op import ConvInputs
from tests.ops.interpreter import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")

if not INTERPRETED:
    from tests.ops.triton_compilation import compiled, recorded, spills_in_loops

shared_kernels = importlib.import_module("mambabyte.ops.triton.kernels")
convolution = importlib.import_module("mambabyte.ops.causal_conv1d.triton")
norm = importlib.import_module("mambabyte.ops.residual_norm.triton")

B, L, D, WIDTH = 8, 8192, 2048, 4  # MambaByte-353M's; its model width is half of D


@dataclass(frozen=True)
class Case:
    """What a launcher launches, the modules that have its kernels by name, the most registers that a thread
    may need by kernel, the most bytes of shared memory, and where else than on sm_90 that is checked."""

    name: str
    launch: Callable[[], Any]
    modules: tuple[Any, ...]
    registers: dict[str, int]
    shared: int = 1024
    more_capabilities: tuple[int, ...] = field(default=())


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def convolve(dtype: torch.dtype, states: bool) -> None:
    """A training step of a packed window, or one that takes a state and gives one."""
    x = empty(B, L, 2 * D, dtype=dtype)[..., :D]
    before, start = empty(B, WIDTH - 1, D) if states else None, empty(B, L, dtype=torch.bool)
    inputs = ConvInputs(x, empty(D, WIDTH), empty(D), before, start)
    _, final = convolution.forward(inputs, states)
    convolution.backward(empty(B, L, D, dtype=dtype), final, inputs)


def normalise(dtype: torch.dtype, width: int, rms: bool) -> None:
    residual, update = empty(B, L, width), empty(B, L, width, dtype=dtype)
    weight, bias = empty(width), None if rms else empty(width)
    out, x = norm.forward(residual, update, weight, bias, 1e-5, rms, dtype)
    other = None if dtype == torch.float32 else dtype
    norm.backward(out, residual, x, weight, bias, 1e-5, rms, other)


SUM = {"sum_kernel": 40}
CONVOLUTION = (convolution, shared_kernels)
NORM = (norm, shared_kernels)
CASES = [
    Case(
        "convolution, bf16",
        lambda: convolve(torch.bfloat16, False),
        CONVOLUTION,
        {"forward_kernel": 168, "backward_kernel": 128, **SUM},
        more_capabilities=(80, 100),
    ),
    Case(
        "convolution, bf16, states",
        lambda: convolve(torch.bfloat16, True),
        CONVOLUTION,
        {"forward_kernel": 128, "backward_kernel": 168, **SUM},
    ),
    Case(
        "convolution, fp32, states",
        lambda: convolve(torch.float32, True),
        CONVOLUTION,
        {"forward_kernel": 168, "backward_kernel": 168, **SUM},
    ),
    Case(
        "layer norm, bf16",
        lambda: normalise(torch.bfloat16, D // 2, False),
        NORM,
        {"forward_kernel": 32, "backward_kernel": 64, **SUM},
        more_capabilities=(80, 100),
    ),
    Case(
        "RMS norm, fp32, as wide as 1.6B",
        lambda: normalise(torch.float32, 2304, True),
        NORM,
        {"forward_kernel": 32, "backward_kernel": 64, **SUM},
    ),
]
EVERYWHERE = [(case, capability) for case in CASES for capability in (90, *case.more_capabilities)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where compiled kernels are kept for as long as these tests run."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
        yield folder


@pytest.mark.parametrize(
    ("case", "capability"), EVERYWHERE, ids=[f"{case.name}, sm_{number}" for case, number in EVERYWHERE]
)
def test_compiles_within_its_bounds(folder, case, capability):
    launches = recorded(case.launch, *case.modules)
    assert {launch.name for launch in launches} == set(case.registers)
    for launch in launches:
        usage = compiled(launch, capability, folder)
        assert usage.registers <= case.registers[launch.name], (launch.name, usage)
        assert usage.shared <= case.shared and usage.spills_in_loops == 0, (launch.name, usage)


def test_spills_are_counted_in_innermost_loops_only():
    sass = """
        /*0000*/ STL [R1], R2 ;
        /*0010*/ LDL R2, [R1] ;
        /*0020*/ FADD R2, R2, R3 ;
        /*0030*/ LDL.64 R4, [R1+0x8] ;
        /*0040*/ @P0 BRA 0x20 ;
        /*0050*/ @P1 BRA 0x10 ;
        /*0060*/ BRA 0x60 ;
    """
    assert spills_in_loops(sass) == 1
