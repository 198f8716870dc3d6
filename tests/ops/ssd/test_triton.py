"""The Triton kernels of SSD against the float64 reference: on a CUDA device, else in Triton's interpreter."""

import importlib
from pathlib import Path

import pytest
import torch

from mambabyte.ops.ssd.custom_op import ssd_fused
from mambabyte.ops.ssd.reference import SSDInputs, ssd_reference
from tests.ops.interpreter import CUDA, DEVICE, INTERPRETED, here, outside, run_in_the_interpreter
from tests.ops.naive import relative_error

pytest.importorskip("triton")
kernels = importlib.import_module("mambabyte.ops.ssd.triton")

NAMES = ("x", "log_decay", "B", "C", "initial_state")
# fp32: sums of a few hundred roundings of 6e-8, decays by sums of logarithms up to 60, and on a device its
# exponential. bf16 and fp16: both sides see the same rounded inputs, which leaves the rounding of outputs and
# gradients to 8 (11) bits.
TOLERANCE = {torch.float32: 2e-5 if CUDA else 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
SPLIT = 4e-5  # of fp32 results from bf16 activations: what is multiplied by these has 16 bits


@outside
def test_in_the_interpreter():
    run_in_the_interpreter(Path(__file__))


@pytest.fixture(autouse=INTERPRETED)
def products_of_bf16(monkeypatch):
    """The interpreter keeps bf16 numbers as their bits, and multiplies those as whole numbers."""
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        a, b = (self.cast_impl(x, float32) if x.dtype == bfloat16 else x for x in (a, b))
        return multiply(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several chunks, tiles and blocks in few steps: each takes the interpreter milliseconds."""
    for name, value in {"CHUNK": 32, "BF16": (16, 4, 1), "FP32": (16, 4, 1), "BLOCK": 16}.items():
        monkeypatch.setattr(kernels, name, value)


def fused(leaves, start):
    return ssd_fused("triton", SSDInputs(*(leaves.get(name) for name in NAMES), start))


def reference(leaves, start):
    return ssd_reference(SSDInputs(*(leaves.get(name) for name in NAMES), start), 64)


def make_arguments(batch, length, heads, channels, groups, states, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    values = {
        "x": draw(batch, length, heads, channels),
        "log_decay": -torch.rand(batch, length, heads, generator=generator),
        "B": draw(batch, length, groups, states),
        "C": draw(batch, length, groups, states),
        "initial_state": draw(batch, heads, channels, states),
    }
    return {name: v.to(DEVICE, dtype if name in ("x", "B", "C") else None) for name, v in values.items()}


def differentiate(function, arguments, start=None, wide=False):
    """Output, final state and the gradient of every argument, under fixed random output gradients."""
    leaves = {n: (v.double() if wide else v).detach().requires_grad_() for n, v in arguments.items()}
    outputs = function(leaves, start)
    generator = torch.Generator().manual_seed(1)
    # Weights of few bits, so that the gradient of the output is the same number in every precision.
    weights = [torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
    return dict(zip(("out", "state", *leaves), (*outputs, *gradients), strict=True))


def assert_close(actual, expected, tolerance):
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert all(error <= tolerance for error in errors.values()), errors


@here
@pytest.mark.parametrize(
    ("batch", "length", "heads", "channels", "groups", "states"),
    [(2, 1, 1, 1, 1, 1), (1, 19, 3, 5, 1, 3), (1, 32, 1, 2, 1, 17), (1, 37, 2, 17, 2, 2)],
)
def test_values_and_gradients_equal_the_reference(
    small_blocks, batch, length, heads, channels, groups, states
):
    arguments = make_arguments(batch, length, heads, channels, groups, states)
    expected = differentiate(reference, arguments, wide=True)
    assert_close(differentiate(fused, arguments), expected, TOLERANCE[torch.float32])


@here
def test_values_and_gradients_with_the_real_sizes():
    arguments = make_arguments(1, kernels.CHUNK + 1, 1, 3, 1, 5)
    expected = differentiate(reference, arguments, wide=True)
    assert_close(differentiate(fused, arguments), expected, TOLERANCE[torch.float32])


@here
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_activations_keep_fp32_arithmetic(small_blocks, dtype):
    arguments = make_arguments(1, 35, 2, 3, 1, 5, dtype)
    actual, expected = differentiate(fused, arguments), differentiate(reference, arguments, wide=True)
    assert actual["out"].dtype == actual["x"].dtype == dtype and actual["log_decay"].dtype == torch.float32
    assert_close(actual, expected, TOLERANCE[dtype])
    exact = SPLIT if dtype == torch.bfloat16 else TOLERANCE[torch.float32]
    for name in ("state", "log_decay", "initial_state"):
        assert relative_error(actual[name], expected[name]) < exact, name


@here
def test_activations_of_two_dtypes_are_computed_in_the_wider_one(small_blocks):
    arguments = make_arguments(1, 5, 1, 3, 1, 2)
    arguments["x"] = arguments["x"].bfloat16()
    actual, expected = differentiate(fused, arguments), differentiate(reference, arguments, wide=True)
    assert actual["x"].dtype == torch.bfloat16 and actual["B"].dtype == torch.float32
    for name in expected:
        exact = TOLERANCE[torch.bfloat16 if name in ("out", "x") else torch.float32]
        assert relative_error(actual[name], expected[name]) < exact, name


@here
@pytest.mark.parametrize("decays", [True, False])
def test_document_start_resets_state_and_leaks_nothing(small_blocks, decays):
    arguments = make_arguments(2, 41, 1, 2, 1, 3)
    if not decays:
        del arguments["log_decay"]
    start = torch.zeros(2, 41, dtype=torch.bool, device=DEVICE)
    start[0, [0, 17, 18, 30]] = True
    start[1, [32, 40]] = True
    actual = differentiate(fused, arguments, start)
    assert_close(actual, differentiate(reference, arguments, start, wide=True), TOLERANCE[torch.float32])
    assert not actual["initial_state"][0].any()
    if decays:
        assert not actual["log_decay"][start].any()

    changed = {name: value.clone() for name, value in arguments.items()}
    for name in arguments.keys() & {"x", "log_decay", "B", "C"}:
        changed[name][0, 18:30] = -3.0
    again = differentiate(fused, changed, start)
    for name in ("out", *arguments.keys() & {"x", "log_decay", "B", "C"}):
        for alone in (slice(0, 18), slice(30, None)):
            assert torch.equal(again[name][0, alone], actual[name][0, alone]), name


@here
def test_a_step_that_forgets_all(small_blocks):
    """The gradients before it vanish, whatever cancels in those after it."""
    arguments = make_arguments(1, 36, 1, 2, 1, 3)
    arguments["log_decay"][:, [10, 33]] = -90.0
    expected = differentiate(reference, arguments, wide=True)
    # sums of logarithms that reach -110 have roundings of 4e-6, which are relative errors of decays
    assert_close(differentiate(fused, arguments), expected, 2e-5)


@here
@pytest.mark.parametrize("cut", [1, 32, 35])
def test_a_sequence_cut_anywhere_equals_the_whole_with_gradients(small_blocks, cut):
    arguments = make_arguments(1, 36, 1, 2, 1, 3)

    def split(leaves, start):
        def part(piece, state):
            timed = {name: leaves[name][:, piece] for name in ("x", "log_decay", "B", "C")}
            return fused({**timed, "initial_state": state}, start)

        first, state = part(slice(None, cut), leaves["initial_state"])
        second, state = part(slice(cut, None), state)
        return torch.cat([first, second], 1), state

    expected = differentiate(fused, arguments)
    assert_close(differentiate(split, arguments), expected, TOLERANCE[torch.float32])


@here
def test_optional_arguments_and_strided_views(small_blocks):
    arguments = make_arguments(1, 9, 2, 6, 2, 8)
    del arguments["initial_state"]
    turned = {name: arguments[name].mT.contiguous().mT for name in ("log_decay", "C")}
    turned["B"] = arguments["B"].transpose(1, 2).contiguous().transpose(1, 2)
    arguments |= {**turned, "x": arguments["x"][..., 1:4]}
    expected = differentiate(reference, arguments, wide=True)
    assert_close(differentiate(fused, arguments), expected, TOLERANCE[torch.float32])


@here
def test_results_have_the_same_bits_every_time_and_states_are_kept_on_request(small_blocks):
    arguments = make_arguments(1, 35, 2, 3, 1, 2)
    first, second = differentiate(fused, arguments), differentiate(fused, arguments)
    assert all(torch.equal(first[name], second[name]) for name in first)
    inputs = SSDInputs(*arguments.values(), None)
    out, state, states = kernels.forward(inputs, False)
    assert torch.equal(out, first["out"]) and torch.equal(state, first["state"]) and states.numel() == 0
    kept = kernels.forward(inputs, True)[2]
    assert kept.shape == kernels.states_shape(inputs.x, inputs.B) == (1, 3, 2, 3, 2)


@here
def test_heads_of_a_group_are_split_where_there_are_few_programs(small_blocks, monkeypatch):
    arguments = make_arguments(1, 5, 3, 2, 1, 2)
    expected = differentiate(reference, arguments, wide=True)
    for programs in (1, 2, 9):  # one part, two of two heads and one, three
        monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", programs)
        assert_close(differentiate(fused, arguments), expected, TOLERANCE[torch.float32])


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA or INTERPRETED, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("length", "channels", "states"),
    # few sizes of blocks: each is compiled anew
    [(1, 65, 64), (9, 49, 48), (1000, 65, 64), (129, 49, 48), (4097, 64, 128), (128, 33, 200)],
)
def test_sizes_on_the_device(length, channels, states, dtype):
    arguments = make_arguments(2, length, 6, channels, 2, states, dtype)
    start = torch.rand(2, length, generator=torch.Generator().manual_seed(2)).to(DEVICE) < 2 / length
    actual = differentiate(fused, arguments, start)
    assert_close(actual, differentiate(reference, arguments, start, wide=True), TOLERANCE[dtype])
    again = differentiate(fused, arguments, start)
    assert all(torch.equal(actual[name], again[name]) for name in actual)
