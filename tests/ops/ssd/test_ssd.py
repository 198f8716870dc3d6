"""The chunked forms against the recurrence, one step at a time in fp64."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mambabyte.ops.ssd import ssd
from tests.ops.naive import naive_ssd, relative_error

LENGTHS = [1, 7, 64, 65, 130]
# fp64 and fp32: a few hundred roundings of sums. bf16 and fp16: both sides see the same rounded inputs, which
# leaves the rounding of outputs and gradients to 8 (11) bits.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def arguments(length, groups=1, decays=True, dtype=torch.float64, heads=4, channels=5, states=3):
    generator = torch.Generator().manual_seed(length)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    log_decay = (-3 * torch.rand(2, length, heads, generator=generator, dtype=torch.float64)).to(dtype)
    return {
        "x": draw(2, length, heads, channels), "log_decay": log_decay.requires_grad_() if decays else None,
        "B": draw(2, length, groups, states), "C": draw(2, length, groups, states),
        "initial_state": draw(2, heads, channels, states),
    }  # fmt: skip


def run(function, given, **more):
    out, state = function(**given, **more)
    generator = torch.Generator().manual_seed(1)
    # Weights of few bits, so that the gradient of the output is the same number in every precision.
    weights = [torch.randn(x.shape, generator=generator).bfloat16().double() for x in (out, state)]
    ((out.double() * weights[0]).sum() + (state.double() * weights[1]).sum()).backward()
    results = {"out": out.detach(), "state": state.detach()}
    for name, tensor in given.items():
        if tensor is not None:
            results[f"grad_{name}"], tensor.grad = tensor.grad, None
    return results


def naive(given, start=None):
    wide = {name: t if t is None else t.detach().double().requires_grad_() for name, t in given.items()}
    return run(naive_ssd, wide, document_start=start)


def assert_equal(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert all(error <= tolerance for error in errors.values()), errors


def starts(length):
    start = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < 0.05
    start[0, 0] = start[1, length // 2] = start[1, -1] = True
    return start


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients_equal_the_recurrence(length, groups, decays, marked):
    given = arguments(length, groups, decays)
    start = starts(length) if marked else None
    actual = run(ssd, given, return_final_state=True, document_start=start, chunk=32)
    assert_equal(actual, naive(given, start), TOLERANCE[torch.float64])


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize(
    ("length", "heads", "groups", "channels", "states"),
    [
        (1, 1, 1, 1, 1), (1, 3, 3, 64, 16), (2, 4, 2, 7, 5), (15, 2, 1, 33, 3), (16, 2, 1, 16, 64),
        (17, 3, 1, 17, 17), (63, 6, 2, 5, 11), (64, 2, 2, 40, 4), (65, 2, 1, 64, 66), (131, 5, 1, 31, 13),
        (193, 4, 4, 9, 8), (70, 2, 1, 100, 130),
    ],
)  # fmt: skip
def test_the_kernel_equals_the_recurrence_at_every_size(
    length, heads, groups, channels, states, decays, marked
):
    sizes = {"heads": heads, "channels": channels, "states": states}
    given = arguments(length, groups, decays, torch.float32, **sizes)
    start = starts(length) if marked else None
    actual = run(ssd, given, return_final_state=True, document_start=start, backend="cpu")
    assert_equal(actual, naive(given, start), TOLERANCE[torch.float32])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_activations_keep_fp32_arithmetic(backend, dtype):
    given = arguments(70, 2, dtype=dtype, channels=20)
    for name in ("log_decay", "initial_state"):
        given[name] = given[name].detach().float().requires_grad_()
    actual, expected = run(ssd, given, return_final_state=True, backend=backend), naive(given)
    assert actual["out"].dtype == actual["grad_x"].dtype == actual["grad_B"].dtype == dtype
    assert actual["grad_log_decay"].dtype == actual["state"].dtype == torch.float32
    assert_equal(actual, expected, TOLERANCE[dtype])
    assert relative_error(actual["state"], expected["state"]) < TOLERANCE[torch.float32]

    # of which bf16 B and C would lose bits
    given["B"], given["C"] = (1.001 * given[name].detach().float() for name in ("B", "C"))
    given = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    actual, expected = run(ssd, given, return_final_state=True, backend=backend), naive(given)
    assert relative_error(actual["state"], expected["state"]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_fp32_and_a_step_that_forgets_all(backend):
    given = arguments(65, dtype=torch.float32)
    with torch.no_grad():
        given["log_decay"][:, ::16] = -90.0  # of which sums in a chunk must not blur the small ones
    actual = run(ssd, given, return_final_state=True, backend=backend)
    # the reference's sums of logarithms reach -360, whose roundings of 1.5e-5 are relative errors of decays
    assert_equal(actual, naive(given), 1e-4 if backend == "reference" else TOLERANCE[torch.float32])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_slow_decays_over_a_long_window(backend):
    given = arguments(1500, dtype=torch.float32, heads=2, channels=3)
    with torch.no_grad():
        given["log_decay"] *= 3e-4
    # the gradients of decays add up to 1,500 x 1,500 pairs
    actual = run(ssd, given, return_final_state=True, backend=backend)
    assert_equal(actual, naive(given), 1e-5)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_same_bits_each_time_at_any_number_of_threads(groups):
    given = arguments(70, groups, dtype=torch.float32, heads=6)
    expected, threads = naive(given), torch.get_num_threads()
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            first, second = (run(ssd, given, return_final_state=True, backend="cpu") for _ in range(2))
            assert_equal(first, expected, TOLERANCE[torch.float32])
            assert all(torch.equal(first[name], second[name]) for name in first)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("cut", [1, 31, 64, 69])
def test_a_recurrence_cut_anywhere_equals_the_whole_with_gradients(backend, cut):
    given = arguments(70, 2, dtype=torch.float32)

    def split(initial_state, **timed):
        first = ssd(**{name: t[:, :cut] for name, t in timed.items()}, initial_state=initial_state,
                    return_final_state=True, backend=backend)  # fmt: skip
        second = ssd(**{name: t[:, cut:] for name, t in timed.items()}, initial_state=first[1],
                     return_final_state=True, backend=backend)  # fmt: skip
        return torch.cat([first[0], second[0]], 1), second[1]

    whole = run(ssd, given, return_final_state=True, backend=backend)
    assert_equal(run(split, given), whole, TOLERANCE[torch.float32])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_nothing_leaks_from_a_document_into_the_next(backend):
    given = arguments(90, 2, dtype=torch.float32)
    start = torch.zeros(2, 90, dtype=torch.bool)
    start[0, [0, 31, 64, 77]] = True
    actual = run(ssd, given, return_final_state=True, document_start=start, backend=backend)
    assert torch.equal(actual["grad_initial_state"][0], torch.zeros(4, 5, 3))
    with torch.no_grad():
        for name in ("x", "log_decay", "B", "C"):
            given[name][0, :77] = -1.0
        given["log_decay"][start] = -5.0
    again = run(ssd, given, return_final_state=True, document_start=start, backend=backend)
    for name in ("out", "grad_x", "grad_B", "grad_C"):
        # the reference's logarithms are summed over documents, and so are their roundings
        tolerance = TOLERANCE[torch.float32] if backend == "reference" else 0
        assert relative_error(again[name][0, 77:], actual[name][0, 77:]) <= tolerance, name


def test_strided_views_are_read_in_place():
    given = arguments(70, 4, dtype=torch.float32)
    wide = torch.randn(2, 70, 12, 5)
    given["x"] = wide.chunk(3, dim=2)[1].requires_grad_()
    given["C"] = torch.randn(2, 70, 12, 3).chunk(3, dim=2)[2].requires_grad_()
    given["B"] = torch.randn(2, 4, 3, 70).permute(0, 3, 1, 2).requires_grad_()
    actual = run(ssd, given, return_final_state=True, backend="cpu")
    assert_equal(actual, naive(given), TOLERANCE[torch.float32])


def test_without_gradients_and_under_checkpointing_the_bits_are_the_same():
    given = arguments(130, 2, dtype=torch.float32)
    expected = run(ssd, given, return_final_state=True, backend="cpu")
    with torch.no_grad():
        out, state = ssd(**given, return_final_state=True, backend="cpu")
    assert torch.equal(out, expected["out"]) and torch.equal(state, expected["state"])

    def again(**tensors):
        return checkpoint(lambda: ssd(**tensors, return_final_state=True, backend="cpu"), use_reentrant=False)

    actual = run(again, given)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_only_inputs_and_the_states_between_chunks_are_kept():
    given = arguments(640, dtype=torch.float32, channels=16, states=8)
    given = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t}) or t, lambda t: t):
        ssd(**given, backend="cpu")
    states = (640 // 64 + 1) * given["initial_state"].numel()
    inputs = sum(given[name].numel() for name in ("x", "log_decay", "B", "C"))
    assert sum(tensor.numel() for tensor in kept.values()) == states + inputs


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_recurrence_without_a_state_begins_at_zero_in_any_dtype(backend):
    given = arguments(10, dtype=torch.bfloat16)
    zero = torch.zeros(2, 4, 5, 3)
    bare = {name: tensor for name, tensor in given.items() if name != "initial_state"}
    out, state = ssd(**bare, return_final_state=True, backend=backend)
    expected = ssd(**bare, initial_state=zero, backend=backend)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert torch.equal(out, expected)
    assert torch.equal(ssd(**bare, backend=backend), out)


@pytest.mark.parametrize(
    ("name", "shape"), [("log_decay", (2, 7, 3)), ("C", (2, 6, 1, 3)), ("initial_state", (2, 4, 3, 5))]
)
def test_shapes_that_do_not_fit_are_refused(name, shape):
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        ssd(**{**arguments(7), name: torch.zeros(shape)})


def test_nothing_to_share_and_a_dtype_without_a_kernel_are_refused():
    with pytest.raises(ValueError, match="non-empty"):
        ssd(**{**arguments(7), "B": torch.zeros(2, 7, 0, 3)})
    with pytest.raises(ValueError, match="fp32, bf16 and fp16"):
        ssd(**arguments(7), backend="cpu")
