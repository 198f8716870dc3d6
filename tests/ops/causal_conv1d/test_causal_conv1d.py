import pytest
import torch

from mambabyte.ops import causal_conv1d
from tests.ops.naive import naive_causal_conv1d, relative_error


def make_arguments(batch, length, channels, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, 2 * channels, generator=generator)[..., :channels].to(
        dtype
    )  # a strided view
    weight, bias = (
        torch.randn(channels, width, generator=generator),
        torch.randn(channels, generator=generator),
    )
    return x, weight, bias, torch.randn(batch, width - 1, channels, generator=generator)


def run(op, arguments, wide=False):
    leaves = [(a.double() if wide else a).detach().requires_grad_() for a in arguments]
    out = op(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return out, *torch.autograd.grad((out.double() * weights).sum(), leaves)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(
    ("length", "channels", "width", "dtype"), [(1, 16, 4, torch.float32), (2, 5, 4, torch.float32), (67, 200,
    4, torch.float32), (5, 3, 1, torch.float32),
     (9, 17, 2, torch.float32), (40, 33, 4, torch.bfloat16)],
)  # fmt: skip
def test_values_and_gradients_equal_the_naive_loop(backend, resets, length, channels, width, dtype):
    arguments = make_arguments(2, length, channels, width, dtype)
    start = torch.rand(2, length, generator=torch.Generator().manual_seed(2)) < 0.2 if resets else None
    actual = run(
        lambda x, w, b, s: causal_conv1d(x, w, b, s, document_start=start, backend=backend), arguments
    )
    expected = run(lambda x, w, b, s: naive_causal_conv1d(x, w, b, s, start), arguments, wide=True)
    tolerance = 2e-6 if dtype == torch.float32 else 8e-3  # bf16 outputs and gradients keep 8 bits
    for a, e in zip(actual, expected, strict=True):
        assert a.numel() == 0 or relative_error(a, e) < tolerance


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("cut", [1, 2, 3, 9, 10])
@pytest.mark.parametrize("resets", [False, True])
def test_cut_anywhere_equals_the_whole_with_gradients(backend, cut, resets):
    arguments = make_arguments(2, 11, 5, 4)
    start = torch.zeros(2, 11, dtype=torch.bool)
    if resets:
        start[0, [1, 8]] = True

    def split(x, weight, bias, state):
        first, state = causal_conv1d(x[:, :cut], weight, bias, state, True, start[:, :cut], backend)
        return torch.cat(
            [first, causal_conv1d(x[:, cut:], weight, bias, state, False, start[:, cut:], backend)], 1
        )

    whole = run(
        lambda x, w, b, s: causal_conv1d(x, w, b, s, document_start=start, backend=backend), arguments
    )
    for a, e in zip(run(split, arguments), whole, strict=True):
        assert relative_error(a, e) < 2e-6


def test_gradcheck_of_the_reference():
    leaves = [a.double().requires_grad_() for a in make_arguments(1, 6, 2, 3)]
    start = torch.tensor([[False, False, True, False, False, True]])
    assert torch.autograd.gradcheck(
        lambda *a: causal_conv1d(*a, document_start=start, return_final_state=True), leaves
    )


def test_wrong_shapes_are_refused():
    x, weight, bias, state = make_arguments(1, 4, 3, 4)
    with pytest.raises(ValueError, match="do not fit"):
        causal_conv1d(x, weight[:2], bias)
    with pytest.raises(ValueError, match="initial_state must have shape"):
        causal_conv1d(x, weight, bias, state[:, :1])
