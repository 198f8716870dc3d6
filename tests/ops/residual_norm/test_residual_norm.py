import pytest
import torch

from mambabyte.ops import residual_norm
from tests.ops.naive import relative_error


def naive(residual, update, weight, bias, epsilon, rms):
    """The two norms by their definitions, in the tensors' dtype."""
    x = residual if update is None else residual + update
    centred = x if rms else x - x.mean(-1, keepdim=True)
    out = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight
    return (out if bias is None else out + bias), x


def make_arguments(shape, with_update, with_bias):
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(shape, generator=generator) + 0.5
    update = torch.randn(shape, generator=generator) if with_update else None
    weight = torch.randn(shape[-1], generator=generator)
    return residual, update, weight, torch.randn(shape[-1], generator=generator) if with_bias else None


def run(op, arguments, wide=False):
    leaves = [None if a is None else (a.double() if wide else a).detach().requires_grad_() for a in arguments]
    out, x = op(*leaves)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    loss = (out.double() * weights[0]).sum() + (x.double() * weights[1]).sum()
    return [out, x, *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(
    ("shape", "with_update", "with_bias"),
    [
        ((1, 1, 16), True, True),
        ((2, 3, 17), True, False),
        ((3, 5, 31), False, True),
        ((2, 41, 96), True, True),
    ],
)
def test_values_and_gradients_equal_the_definition(backend, rms, shape, with_update, with_bias):
    arguments = make_arguments(shape, with_update, with_bias)
    actual = run(lambda *t: residual_norm(*t, 1e-5, rms, backend), arguments)
    expected = run(lambda *t: naive(*t, 1e-5, rms), arguments, wide=True)
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 2e-6  # a few fp32 roundings of sums over at most 96 channels


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_autocast_gives_low_precision_output_and_keeps_the_stream(backend):
    arguments = make_arguments((2, 7, 40), True, True)
    with torch.autocast("cpu", torch.bfloat16):
        out, x = residual_norm(*arguments, 1e-5, False, backend)
        low = run(lambda *t: residual_norm(*t, 1e-5, False, backend), arguments)
    assert out.dtype == torch.bfloat16 and x.dtype == torch.float32
    for a, e in zip(low, run(lambda *t: naive(*t, 1e-5, False), arguments, wide=True), strict=True):
        assert relative_error(a, e) < 1e-2  # eight bits


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_give_output_for_the_layers_after_them(backend, dtype):
    residual, update, weight, bias = make_arguments((2, 7, 40), True, True)
    low = [tensor.to(dtype) for tensor in (update, weight, bias)]
    out, x = residual_norm(residual, *low, 1e-5, False, backend)
    assert out.dtype == dtype and x.dtype == torch.float32
    expected = naive(residual.double(), *(tensor.double() for tensor in low), 1e-5, False)
    assert relative_error(out, expected[0]) < 1e-2  # bf16 keeps eight bits
    assert relative_error(x, expected[1]) < 2e-6


def test_any_number_of_threads():
    arguments = make_arguments((2, 41, 96), True, True)
    expected = run(lambda *t: naive(*t, 1e-5, True), arguments, wide=True)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for a, e in zip(
                run(lambda *t: residual_norm(*t, 1e-5, True, "cpu"), arguments), expected, strict=True
            ):
                assert relative_error(a, e) < 2e-6
    finally:
        torch.set_num_threads(threads)


def test_reference_gradcheck_opcheck_and_refusal():
    arguments = [a.double().requires_grad_() for a in make_arguments((2, 3, 5), True, True)]
    assert torch.autograd.gradcheck(lambda *t: residual_norm(*t, 1e-5, False), arguments)
    leaves = [a.requires_grad_() for a in make_arguments((2, 3, 5), True, True)]
    operator = torch.ops.mambabyte.residual_norm.default
    torch.library.opcheck(operator, (*leaves, 1e-5, False, torch.float32, "cpu"))
    with pytest.raises(ValueError, match="do not fit"):
        residual_norm(leaves[0], leaves[1], leaves[2][:4], None, 1e-5, True)
