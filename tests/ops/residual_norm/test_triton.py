"""The Triton norms against the float64 law: on a CUDA device, else in Triton's interpreter."""

import importlib

import pytest
import torch

from mambabyte.ops.residual_norm.custom_op import residual_norm_fused
from mambabyte.ops.residual_norm.reference import residual_norm_reference
from tests.ops.interpreter import CUDA, DEVICE, here
from tests.ops.naive import relative_error

pytest.importorskip("triton")
norm = importlib.import_module("mambabyte.ops.residual_norm.triton")

# fp32: sums over a few dozen channels. bf16 and fp16: outputs and the update's gradient keep 8 (11) bits.
TOLERANCE = {torch.float32: 2e-5 if CUDA else 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def make_arguments(shape, with_update, with_bias, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(shape, generator=generator) + 0.5
    update = torch.randn(shape, generator=generator).to(dtype) if with_update else None
    weight, bias = torch.randn(2, shape[-1], generator=generator)
    arguments = (residual, update, weight, bias if with_bias else None)
    return [None if t is None else t.to(DEVICE) for t in arguments]


def kernels(arguments, rms, dtype=torch.float32):
    return residual_norm_fused(*arguments, 1e-5, rms, dtype, "triton")


def law(arguments, rms):
    return residual_norm_reference(*arguments, 1e-5, rms)


def differentiate(function, arguments, *options, wide=False, outputs=(True, True)):
    leaves = [None if a is None else (a.double() if wide else a).detach().requires_grad_() for a in arguments]
    out, x = function(leaves, *options)
    generator = torch.Generator().manual_seed(1)
    # of few bits, so that the gradient of the output is the same number in every precision
    weights = [torch.randn(x.shape, generator=generator).bfloat16().double().to(DEVICE) for _ in range(2)]
    used = [o for o, use in zip((out, x), outputs, strict=True) if use]
    loss = sum((o.double() * w).sum() for o, w in zip(used, weights, strict=False))
    present = [leaf for leaf in leaves if leaf is not None]
    return [out, x, *torch.autograd.grad(loss, present, materialize_grads=True)]


def assert_close(actual, expected, tolerance):
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    assert all(error <= tolerance for error in errors), errors


@here
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(
    ("shape", "with_update", "with_bias"),
    [
        ((1, 1, 16), True, True),
        ((2, 3, 17), True, False),
        ((3, 5, 31), False, True),
        ((2, 11, 96), True, True),
        ((1, 2), True, False),
    ],
)
def test_values_and_gradients_equal_the_law(rms, shape, with_update, with_bias):
    arguments = make_arguments(shape, with_update, with_bias)
    actual = differentiate(kernels, arguments, rms)
    assert_close(actual, differentiate(law, arguments, rms, wide=True), TOLERANCE[torch.float32])
    again = differentiate(kernels, arguments, rms)
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))


@here
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_layers_keep_the_stream_in_fp32(dtype):
    arguments = make_arguments((2, 7, 40), True, True, dtype)
    out, x, grad_residual, grad_update, *_ = actual = differentiate(kernels, arguments, False, dtype)
    expected = differentiate(law, arguments, False, wide=True)
    assert out.dtype == grad_update.dtype == dtype and x.dtype == grad_residual.dtype == torch.float32
    assert_close(actual, expected, TOLERANCE[dtype])
    assert_close([x, grad_residual], [expected[1], expected[2]], TOLERANCE[torch.float32])


@here
@pytest.mark.parametrize("outputs", [(True, False), (False, True)])
def test_gradients_where_one_output_is_not_used(outputs):
    arguments = make_arguments((2, 5, 24), True, True)
    actual = differentiate(kernels, arguments, False, outputs=outputs)
    expected = differentiate(law, arguments, False, wide=True, outputs=outputs)
    assert_close(actual, expected, TOLERANCE[torch.float32])


@here
@pytest.mark.parametrize("full", [False, True])
def test_the_operator_is_what_fake_tensors_say(full):
    leaves = [None if a is None else a.requires_grad_() for a in make_arguments((2, 3, 8), full, full)]
    arguments = (*leaves, 1e-5, True, torch.bfloat16, "triton")
    utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.mambabyte.residual_norm.default, arguments, test_utils=utilities)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [70, 1024, 1792, 8192])
@pytest.mark.parametrize("rms", [False, True])
def test_grid_on_the_device(rms, width, dtype):
    arguments = make_arguments((3, 701, width), True, not rms, dtype)
    actual = differentiate(kernels, arguments, rms, dtype)
    # gradients of the weight add 2,103 terms in fp32
    assert_close(actual, differentiate(law, arguments, rms, wide=True), max(TOLERANCE[dtype], 2e-5))
    again = differentiate(kernels, arguments, rms, dtype)
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))
