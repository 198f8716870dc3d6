"""Every Triton kernel, compiled for GPUs by Triton's own compiler in the program's specialisations.

A bound on registers says how many warps a multiprocessor can hold; nothing may be spilled inside a loop. The
same code takes more registers on sm_80, where only spills are bounded.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mambabyte.ops.causal_conv1d.custom_op import ConvInputs
from mambabyte.ops.selective_scan.reference import ScanInputs
from mambabyte.ops.ssd.reference import SSDInputs
from tests.ops.interpreter import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")

if not INTERPRETED:
    from tests.ops.triton_compilation import compiled, recorded, spills_in_loops

shared_kernels = importlib.import_module("mambabyte.ops.triton.kernels")
convolution = importlib.import_module("mambabyte.ops.causal_conv1d.triton")
norm = importlib.import_module("mambabyte.ops.residual_norm.triton")
scan = importlib.import_module("mambabyte.ops.selective_scan.triton")
ssd = importlib.import_module("mambabyte.ops.ssd.triton")

B, L, D, N, WIDTH = 8, 8192, 2048, 16, 4  # MambaByte-353M's; its model width is half of D


@dataclass(frozen=True)
class Case:
    """What a launcher launches, the modules that have its kernels by name, the most registers that a thread
    may need by kernel, the bytes that a lane loads at once by kernel, the most bytes of shared memory, and
    where else than on sm_90 that is checked."""

    name: str
    launch: Callable[[], Any]
    modules: tuple[Any, ...]
    registers: dict[str, int]
    loads: dict[str, int] = field(default_factory=dict)
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


def select(dtype: torch.dtype, states: bool) -> None:
    """A training step of packed windows, or one that takes a state and gives one; in spans of time."""
    u, delta, z = (empty(B, L, D, dtype=dtype) for _ in "udz")
    state, start = (empty(B, D, N), None) if states else (None, empty(B, L, dtype=torch.bool))
    projections = [empty(B, L, N, dtype=dtype) for _ in "BC"]
    inputs = ScanInputs(u, delta, empty(D, N), *projections, empty(D), z, empty(D), True, state, start)
    out, final, kept = scan.forward(inputs, True)
    scan.backward(out, final if states else None, inputs, kept)


def dual(dtype: torch.dtype, states: int, resumed: bool) -> None:
    """A training step of Mamba-2's heads of 64 channels, of packed windows, or from a state and to one."""
    x, log_decay = empty(B, L, D // 64, 64, dtype=dtype), empty(B, L, D // 64)
    state, start = (empty(B, D // 64, 64, states), None) if resumed else (None, empty(B, L, dtype=torch.bool))
    projections = [empty(B, L, 1, states, dtype=dtype) for _ in "BC"]
    inputs = SSDInputs(x, log_decay, *projections, state, start)
    out, final, kept = ssd.forward(inputs, True)
    ssd.backward(out, final if resumed else None, inputs, kept)


SUM = {"sum_kernel": 40}
DUAL = {"cumulate_kernel": 40, "combine_kernel": 40, "decay_kernel": 80}
CONVOLUTION = (convolution, shared_kernels)
NORM = (norm, shared_kernels)
CASES = [
    Case(
        "convolution, bf16",
        lambda: convolve(torch.bfloat16, False),
        CONVOLUTION,
        {"forward_kernel": 128, "backward_kernel": 128, **SUM},
        {"forward_kernel": 16, "backward_kernel": 8},
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
        {"forward_kernel": 16, "backward_kernel": 16},
        more_capabilities=(80, 100),
    ),
    Case(
        "RMS norm, fp32, as wide as 1.6B",
        lambda: normalise(torch.float32, 2304, True),
        NORM,
        {"forward_kernel": 32, "backward_kernel": 64, **SUM},
    ),
    Case(
        "scan, bf16",
        lambda: select(torch.bfloat16, False),
        (scan,),
        {"scan_kernel": 168, "combine_kernel": 40, "backward_kernel": 255},
        more_capabilities=(80, 100),
    ),
    Case(
        "scan, fp32, states",
        lambda: select(torch.float32, True),
        (scan,),
        {"scan_kernel": 168, "combine_kernel": 40, "backward_kernel": 255},
    ),
    Case(
        "ssd, bf16",
        lambda: dual(torch.bfloat16, 128, False),
        (ssd,),
        {**DUAL, "chunk_kernel": 160, "product_kernel": 232},
        {"product_kernel": 16},
        shared=53248,
        more_capabilities=(80,),
    ),
    Case(
        "ssd, fp32, states",
        lambda: dual(torch.float32, 64, True),
        (ssd,),
        {**DUAL, "chunk_kernel": 168, "product_kernel": 255},
        {"product_kernel": 16},
        shared=53248,
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
        registers = 255 if capability == 80 else case.registers[launch.name]
        assert usage.registers <= registers, (launch.name, usage)
        assert usage.load >= case.loads.get(launch.name, 0), (launch.name, usage)
        assert usage.shared <= case.shared and usage.spills_in_loops == 0, (launch.name, usage)


class Allocations(TorchDispatchMode):
    """Bytes of every tensor that is made, but for those of the shape of the inputs."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.sizes = shape, []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        if isinstance(made, torch.Tensor) and made.shape != self.shape and made._base is None:
            self.sizes.append(made.numel() * made.element_size())
        return made


def test_a_million_steps_need_no_temporary_that_grows_with_them():
    wide = empty(1, 2**20, D, dtype=torch.bfloat16)
    narrow, start = empty(1, 2**20, N, dtype=torch.bfloat16), empty(1, 2**20, dtype=torch.bool)
    inputs = ScanInputs(
        wide, wide, empty(D, N), narrow, narrow, empty(D), wide, empty(D), True, None, start
    )  # fmt: skip
    kept = empty(*scan.states_shape(wide, inputs.A))
    with Allocations(wide.shape) as made:
        recorded(lambda: scan.backward(wide, None, inputs, kept), scan)
    # The states at the start of the chunks of a group: 16 warps of 64 channels and 256 steps on each of 132
    # multiprocessors. Those of all chunks are 16 GiB.
    assert 2**28 < max(made.sizes) < 2**28 * 1.1


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
