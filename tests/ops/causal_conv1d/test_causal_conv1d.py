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


@pytest.mark.parametrize("backend", ["reference", None])  # None: the kernel, where it has the width
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


def test_a_width_that_the_kernel_lacks_is_refused_where_it_is_asked_for():
    x, weight, bias, state = make_arguments(2, 5, 3, 5)
    with pytest.raises(ValueError, match="it takes widths of 2, 3, 4, not 5"):
        causal_conv1d(x, weight, bias, state, backend="cpu")


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("resets", [False, True])
def test_the_final_state_has_the_same_gradients_on_the_kernel(length, resets):
    arguments = make_arguments(2, length, 5, 4)
    start = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < 0.4 if resets else None

    def both(backend):
        def joined(*leaves):
            out, state = causal_conv1d(*leaves, True, start, backend)
            return torch.cat([out, state.to(out)], 1)

        return joined

    expected = run(both("reference"), arguments, wide=True)
    for a, e in zip(run(both("cpu"), arguments), expected, strict=True):
        assert relative_error(a, e) < 2e-6


@pytest.mark.parametrize("width", [5, 6, 9])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 12])
def test_document_starts_in_windows_shorter_than_the_width(width, length):
    arguments = make_arguments(3, length, 2, width)
    start = torch.zeros(3, length, dtype=torch.bool)
    start[1, 0] = start[2, length // 2] = True

    out = run(lambda x, w, b, s: causal_conv1d(x, w, b, s, document_start=start), arguments)
    expected = run(lambda x, w, b, s: naive_causal_conv1d(x, w, b, s, start), arguments, wide=True)
    for a, e in zip(out, expected, strict=True):
        assert relative_error(a, e) < 2e-6
    # the state after it continues as the whole does
    x, weight, bias, state = arguments
    longer = torch.cat([x, make_arguments(3, 7, 2, width)[0]], 1)
    later = torch.zeros(3, 7, dtype=torch.bool)
    whole = causal_conv1d(longer, weight, bias, state, document_start=torch.cat([start, later], 1))
    _, state = causal_conv1d(x, weight, bias, state, return_final_state=True, document_start=start)
    assert relative_error(causal_conv1d(longer[:, length:], weight, bias, state), whole[:, length:]) < 2e-6


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
