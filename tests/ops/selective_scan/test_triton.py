"""The Triton scan against the float64 reference: on a CUDA device, else in Triton's interpreter."""

import importlib
from pathlib import Path

import pytest
import torch

from mambabyte.ops.selective_scan.reference import ScanInputs, selective_scan_reference
from tests.ops.interpreter import CUDA, DEVICE, INTERPRETED, here, outside, run_in_the_interpreter
from tests.ops.naive import relative_error

pytest.importorskip("triton")
scan = importlib.import_module("mambabyte.ops.selective_scan.triton")

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
# fp32: a few hundred roundings of 6e-8, and the hardware's exponential. bf16 and fp16: both sides see the
# same rounded inputs, which leaves the rounding of outputs and gradients to 8 (11) bits.
TOLERANCE = {torch.float32: 2e-5 if CUDA else 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@outside
def test_in_the_interpreter():
    run_in_the_interpreter(Path(__file__))


class Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, softplus, start, *tensors):
        out, state, states = scan.forward(ScanInputs(*tensors[:-1], softplus, tensors[-1], start), True)
        assert states.shape == scan.states_shape(tensors[0], tensors[2])
        ctx.save_for_backward(*tensors[:-1], start, states)
        ctx.softplus, ctx.initial = softplus, tensors[-1]
        return out, state

    @staticmethod
    def backward(ctx, grad_out, grad_state):
        *tensors, start, states = ctx.saved_tensors
        inputs = ScanInputs(*tensors, ctx.softplus, None, start)
        gradients = scan.backward(grad_out, grad_state, inputs, states)
        assert all(gradient is None or gradient.is_contiguous() for gradient in gradients)
        return (None, None, *gradients[:-1], None if ctx.initial is None else gradients[-1])


def kernels(leaves, start, softplus=True):
    return Scan.apply(softplus, start, *(leaves.get(name) for name in NAMES))


def reference(leaves, start, softplus=True):
    *tensors, initial_state = (leaves.get(name) for name in NAMES)
    return selective_scan_reference(ScanInputs(*tensors, softplus, initial_state, start))


def make_arguments(batch, length, channels, states, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    values = {
        "u": draw(batch, length, channels),
        "delta": draw(batch, length, channels),
        "A": -torch.rand(channels, states, generator=generator) * 4 - 0.05,
        "B": draw(batch, length, states),
        "C": draw(batch, length, states),
        "D": draw(channels),
        "z": draw(batch, length, channels),
        "delta_bias": draw(channels) - 2,
        "initial_state": draw(batch, channels, states),
    }
    activations = ("u", "delta", "B", "C", "z")
    return {name: v.to(DEVICE, dtype if name in activations else None) for name, v in values.items()}


def differentiate(function, arguments, start=None, wide=False, **options):
    """Output, final state and the gradient of every argument, under fixed random output gradients."""
    leaves = {n: (v.double() if wide else v).detach().requires_grad_() for n, v in arguments.items()}
    outputs = function(leaves, start, **options)
    generator = torch.Generator().manual_seed(1)
    loss = sum((o.double() * torch.randn(o.shape, generator=generator).to(o)).sum() for o in outputs)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(("out", "state", *leaves), (*outputs, *gradients), strict=True))


def assert_close(actual, expected, tolerance):
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert all(error <= tolerance for error in errors.values()), errors


@pytest.fixture
def short_spans(monkeypatch):
    """Several chunks, spans and blocks in few steps: each takes the interpreter a millisecond."""
    for name, value in {"SPAN": 8, "CHUNK": 4, "BLOCK": 32, "ENOUGH_WARPS": 512}.items():
        monkeypatch.setattr(scan, name, value)


@here
@pytest.mark.parametrize(
    ("batch", "length", "channels", "states"),
    [(1, 1, 5, 5), (1, 2, 33, 1), (1, 3, 3, 16), (1, 4, 32, 2), (2, 5, 3, 2), (1, 9, 40, 3), (1, 22, 5, 2)],
)
def test_values_and_gradients_equal_the_reference(short_spans, batch, length, channels, states):
    arguments = make_arguments(batch, length, channels, states)
    expected = differentiate(reference, arguments, wide=True)
    assert_close(differentiate(kernels, arguments), expected, TOLERANCE[torch.float32])


@here
def test_values_and_gradients_with_the_real_sizes():
    arguments = make_arguments(1, scan.SPAN + 1, 3, 1)
    expected = differentiate(reference, arguments, wide=True)
    assert_close(differentiate(kernels, arguments), expected, TOLERANCE[torch.float32])


@here
def test_many_programs_walk_the_whole_length_with_the_same_values(short_spans, monkeypatch):
    arguments = make_arguments(1, 18, 5, 2)
    spans = differentiate(kernels, arguments)
    monkeypatch.setattr(scan, "ENOUGH_WARPS", 1)
    assert_close(differentiate(kernels, arguments), spans, TOLERANCE[torch.float32])


@here
def test_backward_in_small_groups_of_spans_has_the_same_values(short_spans, monkeypatch):
    arguments = make_arguments(1, 22, 5, 2)
    start = torch.zeros(1, 22, dtype=torch.bool, device=DEVICE)
    start[0, 10] = True
    expected = differentiate(reference, arguments, start, wide=True)
    for warps in (1, 2):  # groups of one span, and of two
        monkeypatch.setattr(scan, "GROUP_WARPS", warps)
        assert_close(differentiate(kernels, arguments, start), expected, TOLERANCE[torch.float32])


@here
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_activations_keep_fp32_arithmetic(short_spans, dtype):
    arguments = make_arguments(1, 13, 8, 2, dtype)
    actual, expected = differentiate(kernels, arguments), differentiate(reference, arguments, wide=True)
    assert actual["out"].dtype == actual["u"].dtype == dtype and actual["A"].dtype == torch.float32
    assert_close(actual, expected, TOLERANCE[dtype])
    assert relative_error(actual["state"], expected["state"]) < TOLERANCE[torch.float32]


@here
@pytest.mark.parametrize("enough", [1, 512])
def test_document_start_resets_state_and_leaks_nothing(short_spans, monkeypatch, enough):
    monkeypatch.setattr(scan, "ENOUGH_WARPS", enough)
    arguments = make_arguments(2, 15, 5, 2)
    start = torch.zeros(2, 15, dtype=torch.bool, device=DEVICE)
    start[0, [0, 7, 8, 10]] = True
    start[1, 14] = True
    actual = differentiate(kernels, arguments, start)
    expected = differentiate(reference, arguments, start, wide=True)
    assert_close(actual, expected, TOLERANCE[torch.float32])
    assert not actual["initial_state"][0].any()

    changed = {name: value.clone() for name, value in arguments.items()}
    for name in ("u", "delta", "B", "C", "z"):
        changed[name][0, :10] = 3.0
    again = differentiate(kernels, changed, start)
    for name in ("out", "u", "delta", "B", "C", "z"):
        assert torch.equal(again[name][0, 10:], actual[name][0, 10:]), name


@here
@pytest.mark.parametrize("cut", [1, 8, 14])
def test_scan_cut_anywhere_equals_the_whole_with_gradients(short_spans, cut):
    arguments = make_arguments(1, 15, 5, 2)

    def split(leaves, start):
        def part(piece, state):
            timed = {n: leaves[n][:, piece] for n in ("u", "delta", "B", "C", "z")}
            return kernels({**leaves, **timed, "initial_state": state}, start)

        first, state = part(slice(None, cut), leaves["initial_state"])
        second, state = part(slice(cut, None), state)
        return torch.cat([first, second], 1), state

    expected = differentiate(kernels, arguments)
    assert_close(differentiate(split, arguments), expected, TOLERANCE[torch.float32])


@here
def test_optional_arguments_strided_views_and_no_softplus(short_spans):
    arguments = make_arguments(2, 9, 10, 2)
    bare = {name: arguments[name] for name in ("u", "delta", "A", "B", "C")}
    bare["u"], bare["delta"] = bare["u"][..., :5], bare["delta"].abs()[..., 5:] * 0.1
    bare["A"] = bare["A"][:5]
    expected = differentiate(reference, bare, wide=True, softplus=False)
    assert_close(differentiate(kernels, bare, softplus=False), expected, TOLERANCE[torch.float32])

    wide = torch.randn(2, 9, 20, device=DEVICE)
    arguments["u"], arguments["z"] = wide[..., :10], wide[..., 10:]
    arguments["delta"] = arguments["delta"] * 60  # softplus beyond its linear range, and underflow
    expected = differentiate(reference, arguments, wide=True)
    assert_close(differentiate(kernels, arguments), expected, TOLERANCE[torch.float32])


@here
def test_results_have_the_same_bits_every_time_and_states_are_kept_on_request(short_spans):
    arguments = make_arguments(1, 10, 5, 2)
    first, second = differentiate(kernels, arguments), differentiate(kernels, arguments)
    assert all(torch.equal(first[name], second[name]) for name in first)
    *tensors, initial_state = arguments.values()
    out, state, states = scan.forward(ScanInputs(*tensors, True, initial_state, None), False)
    assert torch.equal(out, first["out"]) and torch.equal(state, first["state"]) and states.numel() == 0


@here
def test_available_names_what_runs():
    assert scan.available()[0]


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA or INTERPRETED, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("states", [1, 8, 16, 64, 128])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000, 4097])
def test_grid_on_the_device(length, states, dtype):
    arguments = make_arguments(2, length, 70, states, dtype)
    start = torch.rand(2, length, generator=torch.Generator().manual_seed(2)).to(DEVICE) < 2 / length
    actual = differentiate(kernels, arguments, start)
    assert_close(actual, differentiate(reference, arguments, start, wide=True), TOLERANCE[dtype])
    again = differentiate(kernels, arguments, start)
    assert all(torch.equal(actual[name], again[name]) for name in actual)
