"""The Triton convolution against the float64 law: on a CUDA device, else in Triton's interpreter."""

import importlib

import pytest
import torch

from mambabyte.ops.causal_conv1d.custom_op import ConvInputs, causal_conv1d_fused
from mambabyte.ops.causal_conv1d.reference import causal_conv1d_reference, last_inputs
from tests.ops.interpreter import CUDA, DEVICE, here
from tests.ops.naive import relative_error

pytest.importorskip("triton")
convolution = importlib.import_module("mambabyte.ops.causal_conv1d.triton")

# fp32: sums of a few dozen roundings of 6e-8, and the hardware's exponential. bf16 and fp16: both sides see
# the same rounded inputs, which leaves the rounding of outputs and gradients to 8 (11) bits.
TOLERANCE = {torch.float32: 2e-5 if CUDA else 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def make_arguments(batch, length, channels, width, dtype=torch.float32, state=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, 2 * channels, generator=generator).to(DEVICE, dtype)[..., :channels]
    weight, bias = (
        torch.randn(channels, width, generator=generator),
        torch.randn(channels, generator=generator),
    )
    before = torch.randn(batch, width - 1, channels, generator=generator) if state else None
    return [x, *(None if t is None else t.to(DEVICE) for t in (weight, bias, before))]


def make_start(batch, length, share=0.3):
    return (torch.rand(batch, length, generator=torch.Generator().manual_seed(2)) < share).to(DEVICE)


def kernels(x, weight, bias, state, start, final=True):
    return causal_conv1d_fused("triton", ConvInputs(x, weight, bias, state, start), final)


def law(x, weight, bias, state, start):
    out = causal_conv1d_reference(x, weight, bias, state, start)
    return out, last_inputs(x, state, weight.shape[1] - 1, start)


def differentiate(function, arguments, start=None, wide=False):
    """Outputs and the gradient of every argument, under fixed random output gradients of few bits, which are
    the same numbers in every precision."""
    leaves = [None if a is None else (a.double() if wide else a).detach().requires_grad_() for a in arguments]
    outputs = [o for o in function(*leaves, start) if o is not None]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator).bfloat16().to(o) for o in outputs]
    loss = sum((o.double() * w.double()).sum() for o, w in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])]


@here
def test_the_gradient_of_x_is_written_into_given_rows():
    x, weight, bias, state = make_arguments(2, 13, 20, 4)
    inputs = ConvInputs(x, weight, bias, state, None)
    grad_out, wide = torch.ones_like(x), torch.zeros(2, 13, 50, device=DEVICE)
    expected, *_ = convolution.backward(grad_out, None, inputs)
    convolution.backward(grad_out, None, inputs, wide[..., :20])
    assert torch.equal(wide[..., :20], expected) and not wide[..., 20:].any()


def assert_close(actual, expected, tolerance):
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    assert all(error <= tolerance for error in errors), errors


@pytest.fixture
def short_tiles(monkeypatch):
    """Several rounds, tiles and blocks in a few steps."""
    for name, value in {"FORWARD_ROWS": 4, "SHORTEST_TILE": 8, "WARPS": 10**6}.items():
        monkeypatch.setattr(convolution, name, value)
    for name in ("FORWARD_BLOCK", "BACKWARD_BLOCK"):
        monkeypatch.setattr(convolution, name, 32)


@here
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "channels", "width", "state"),
    [
        (2, 1, 5, 4, True),
        (1, 2, 3, 3, True),
        (1, 3, 40, 4, False),
        (2, 8, 5, 2, True),
        (1, 23, 3, 4, True),
        (1, 13, 33, 3, False),
    ],
)
def test_values_and_gradients_equal_the_law(short_tiles, resets, batch, length, channels, width, state):
    arguments = make_arguments(batch, length, channels, width, state=state)
    start = make_start(batch, length) if resets else None
    expected = differentiate(law, arguments, start, wide=True)
    assert_close(differentiate(kernels, arguments, start), expected, TOLERANCE[torch.float32])


@here
def test_values_and_gradients_with_the_real_sizes():
    arguments, start = make_arguments(1, 43, 3, 4), make_start(1, 43, 0.1)
    expected = differentiate(law, arguments, start, wide=True)
    assert_close(differentiate(kernels, arguments, start), expected, TOLERANCE[torch.float32])


@here
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_activations_keep_fp32_arithmetic(short_tiles, dtype):
    arguments, start = make_arguments(1, 13, 8, 4, dtype), make_start(1, 13)
    arguments[3] = arguments[3].to(dtype)  # the law rounds the state to the activations' precision
    actual, expected = (
        differentiate(kernels, arguments, start),
        differentiate(law, arguments, start, wide=True),
    )
    assert actual[0].dtype == actual[1].dtype == actual[2].dtype == dtype
    assert actual[3].dtype == torch.float32
    assert_close(actual, expected, TOLERANCE[dtype])


@here
@pytest.mark.parametrize("cut", [1, 2, 10])
def test_cut_anywhere_equals_the_whole_with_gradients(short_tiles, cut):
    arguments, start = make_arguments(1, 11, 5, 4), make_start(1, 11, 0.1)

    def split(x, weight, bias, state, start):
        first, state = kernels(x[:, :cut], weight, bias, state, start[:, :cut])
        second, state = kernels(x[:, cut:], weight, bias, state, start[:, cut:])
        return torch.cat([first, second], 1), state

    whole = differentiate(kernels, arguments, start)
    assert_close(differentiate(split, arguments, start), whole, TOLERANCE[torch.float32])


@here
def test_nothing_crosses_a_document_start_not_even_infinity(short_tiles):
    arguments = make_arguments(1, 20, 5, 4)
    start = torch.zeros(1, 20, dtype=torch.bool, device=DEVICE)
    start[0, 9] = True
    calm = differentiate(kernels, arguments, start)
    arguments[0][:, :9] = float("inf")
    arguments[3][:] = float("inf")
    wild = differentiate(kernels, arguments, start)
    for index in (0, 2):  # the output and the input's gradient
        assert torch.equal(wild[index][:, 9:], calm[index][:, 9:])
    assert torch.equal(wild[1], calm[1])


@here
def test_bits_are_the_same_every_time_and_the_final_state_is_made_on_request(short_tiles):
    arguments, start = make_arguments(1, 11, 5, 4), make_start(1, 11)
    first, second = differentiate(kernels, arguments, start), differentiate(kernels, arguments, start)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    out, state = kernels(*arguments, start, final=False)
    assert torch.equal(out, first[0]) and state is None
    without = differentiate(lambda *a: kernels(*a, final=False), arguments, start)
    expected = differentiate(lambda *a: law(*a)[:1], arguments, start, wide=True)
    assert_close(without, expected, TOLERANCE[torch.float32])


@here
@pytest.mark.parametrize("state", [False, True])
def test_the_operator_is_what_fake_tensors_say(state):
    leaves = [None if a is None else a.requires_grad_() for a in make_arguments(1, 3, 5, 4, state=state)]
    leaves[0] = leaves[0].detach().requires_grad_()
    arguments = (*leaves, make_start(1, 3), state, "triton")
    utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.mambabyte.causal_conv1d.default, arguments, test_utils=utilities)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 31, 64, 4097])
@pytest.mark.parametrize("channels", [70, 1024])
def test_grid_on_the_device(length, channels, dtype):
    arguments, start = make_arguments(2, length, channels, 4, dtype), make_start(2, length, 2 / length)
    arguments[3] = arguments[3].to(dtype)
    actual = differentiate(kernels, arguments, start)
    # gradients of the weight add 8,194 terms in fp32
    expected = differentiate(law, arguments, start, wide=True)
    assert_close(actual, expected, max(TOLERANCE[dtype], 2e-5))
    again = differentiate(kernels, arguments, start)
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))
