"""The chunked form against the recurrence, one step at a time in fp64."""

import pytest
import torch

from mambabyte.ops.ssd import ssd
from tests.ops.naive import naive_ssd, relative_error

LENGTHS = [1, 7, 64, 65, 130]


def arguments(length, groups=1, decays=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    log_decay = (-3 * torch.rand(2, length, 4, generator=generator, dtype=torch.float64)).to(dtype)
    return {
        "x": draw(2, length, 4, 5), "log_decay": log_decay.requires_grad_() if decays else None,
        "B": draw(2, length, groups, 3), "C": draw(2, length, groups, 3), "initial_state": draw(2, 4, 5, 3),
    }  # fmt: skip


def run(function, given, **more):
    out, state = function(**given, **more)
    weights = torch.arange(1.0, out.numel() + 1, dtype=out.dtype).view_as(out).sin()
    ((out * weights).sum() + (state.cos()).sum()).backward()
    results = {"out": out.detach(), "state": state.detach()}
    for name, tensor in given.items():
        if tensor is not None:
            results[f"grad_{name}"], tensor.grad = tensor.grad, None
    return results


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients_equal_the_recurrence(length, groups, decays, marked):
    given = arguments(length, groups, decays)
    start = None
    if marked:
        start = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < 0.05
        start[0, 0] = start[1, length // 2] = start[1, -1] = True
    actual = run(ssd, given, return_final_state=True, document_start=start, chunk=32)
    expected = run(naive_ssd, given, document_start=start)
    for name in expected:
        # fp64, a few hundred roundings of sums of order 100
        assert relative_error(actual[name], expected[name]) < 1e-11, name


def test_fp32_and_a_step_that_forgets_all():
    given = arguments(65, dtype=torch.float32)
    with torch.no_grad():
        given["log_decay"][:, ::16] = -90.0  # of which sums in a chunk must not blur the small ones
    actual = run(ssd, given, return_final_state=True)
    expected = run(naive_ssd, {name: t.detach().double().requires_grad_() for name, t in given.items()})
    for name in expected:
        # the chunk's sums of logarithms reach -360, whose roundings of 1.5e-5 are relative errors of decays
        assert relative_error(actual[name], expected[name]) < 1e-4, name


def test_a_recurrence_without_a_state_begins_at_zero_in_any_dtype():
    given = arguments(10, dtype=torch.bfloat16)
    zero = torch.zeros(2, 4, 5, 3)
    bare = {name: tensor for name, tensor in given.items() if name != "initial_state"}
    out, state = ssd(**bare, return_final_state=True)
    expected = ssd(**bare, initial_state=zero)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert torch.equal(out, expected)
    assert torch.equal(ssd(**bare), out)


@pytest.mark.parametrize(
    ("name", "shape"), [("log_decay", (2, 7, 3)), ("C", (2, 6, 1, 3)), ("initial_state", (2, 4, 3, 5))]
)
def test_shapes_that_do_not_fit_are_refused(name, shape):
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        ssd(**{**arguments(7), name: torch.zeros(shape)})
