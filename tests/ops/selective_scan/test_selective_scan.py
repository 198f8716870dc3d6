import pytest
import torch

from mambabyte.ops import selective_scan, use_backend
from tests.ops.naive import naive_selective_scan, relative_error

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def make_arguments(batch, length, channels, states, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = {
        "u": draw(batch, length, channels),
        "delta": draw(batch, length, channels),
        "A": -torch.rand(channels, states, generator=generator, dtype=torch.float64) * 4 - 0.05,
        "B": draw(batch, length, states),
        "C": draw(batch, length, states),
        "D": draw(channels),
        "z": draw(batch, length, channels),
        "delta_bias": draw(channels) - 2,
        "initial_state": draw(batch, channels, states),
    }
    activations = ("u", "delta", "B", "C", "z")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {name: value.to(dtype if name in activations else wide) for name, value in values.items()}


def run(scan, arguments, document_start=None, wide=False):
    """Output, last state and the gradient of every argument, under fixed random output gradients."""
    leaves = {n: (v.double() if wide else v).detach().requires_grad_() for n, v in arguments.items()}
    out, state = scan(leaves, document_start)
    generator = torch.Generator().manual_seed(1)
    # Weights of few bits, so that the gradient of the output is the same number in every precision.
    weights = [torch.randn(x.shape, generator=generator).bfloat16().double() for x in (out, state)]
    loss = (out.double() * weights[0]).sum() + (state.double() * weights[1]).sum()
    gradients = torch.autograd.grad(loss, [leaves[n] for n in NAMES])
    return {"out": out, "state": state, **{f"grad_{n}": g for n, g in zip(NAMES, gradients, strict=True)}}


def naive(leaves, document_start):
    return naive_selective_scan(*leaves.values(), document_start)


def fused(backend):
    def scan(leaves, document_start):
        return selective_scan(
            **leaves,
            delta_softplus=True,
            return_final_state=True,
            document_start=document_start,
            backend=backend,
        )

    return scan


def assert_equal(actual, expected, tolerance):
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert all(error <= tolerance for error in errors.values()), errors


# fp32: a few hundred roundings of 6e-8 in a sum. bf16 and fp16: both sides see the same rounded inputs, which
# leaves the rounding of outputs and gradients to 8 (11) bits.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("length", "channels", "states"),
    [
        (1, 16, 16),
        (2, 5, 1),
        (31, 33, 8),
        (32, 16, 16),
        (33, 17, 3),
        (63, 40, 16),
        (65, 16, 64),
        (130, 20, 11),
        (40, 8, 128),
    ],
)
def test_values_and_gradients_equal_the_naive_loop(backend, length, channels, states):
    arguments = make_arguments(2, length, channels, states)
    assert_equal(run(fused(backend), arguments), run(naive, arguments, wide=True), TOLERANCE[torch.float32])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_activations_keep_fp32_arithmetic(backend, dtype):
    arguments = make_arguments(3, 70, 24, 16, dtype)
    actual, expected = run(fused(backend), arguments), run(naive, arguments, wide=True)
    assert actual["out"].dtype == actual["grad_u"].dtype == dtype and actual["grad_A"].dtype == torch.float32
    assert_equal(actual, expected, TOLERANCE[dtype])
    assert relative_error(actual["state"], expected["state"]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("states", [1, 8, 16, 64, 128])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000, 4097])
def test_the_kernel_equals_the_double_reference_at_every_size(length, states, dtype):
    arguments = make_arguments(
        1, length, 20, states, dtype
    )  # 20 channels: a whole register and a part of one
    expected = run(fused("reference"), arguments, wide=True)
    # gradients of A, D and the bias add up to 4,097 terms in fp32
    assert_equal(run(fused("cpu"), arguments), expected, max(TOLERANCE[dtype], 2e-5))


def test_long_window_at_any_number_of_threads_with_the_same_bits():
    arguments = make_arguments(1, 4097, 40, 4)
    expected = run(fused("reference"), arguments, wide=True)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            first, second = run(fused("cpu"), arguments), run(fused("cpu"), arguments)
            # gradients of A, D and the bias add 4,097 terms in fp32
            assert_equal(first, expected, 2e-5)
            assert all(torch.equal(first[name], second[name]) for name in first), "same threads, same bits"
    finally:
        torch.set_num_threads(threads)


def test_reference_in_double_equals_the_naive_loop_and_gradcheck():
    arguments = make_arguments(2, 130, 3, 2, torch.float64)
    assert_equal(run(fused("reference"), arguments), run(naive, arguments), TOLERANCE[torch.float64])
    small = [v.requires_grad_() for v in make_arguments(1, 5, 2, 2, torch.float64).values()]
    start = torch.tensor([[False, False, True, False, False]])
    assert torch.autograd.gradcheck(lambda *a: fused(None)(dict(zip(NAMES, a, strict=True)), start), small)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("cut", [1, 31, 32, 64, 69])
def test_scan_cut_anywhere_equals_the_whole_with_gradients(backend, cut):
    arguments = make_arguments(2, 70, 20, 5)

    def split(leaves, _):
        def part(piece, state):
            timed = {n: leaves[n][:, piece] for n in ("u", "delta", "B", "C", "z")}
            return fused(backend)({**leaves, **timed, "initial_state": state}, None)

        first, state = part(slice(None, cut), leaves["initial_state"])
        second, state = part(slice(cut, None), state)
        return torch.cat([first, second], 1), state

    assert_equal(run(split, arguments), run(fused(backend), arguments), TOLERANCE[torch.float32])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_document_start_resets_state_and_leaks_nothing(backend):
    arguments = make_arguments(2, 90, 20, 5)
    start = torch.zeros(2, 90, dtype=torch.bool)
    start[0, [0, 31, 32, 77]] = True
    start[1, 89] = True
    actual = run(fused(backend), arguments, start)
    assert_equal(actual, run(naive, arguments, start, wide=True), TOLERANCE[torch.float32])
    assert torch.equal(actual["grad_initial_state"][0], torch.zeros(20, 5))

    changed = {name: value.clone() for name, value in arguments.items()}
    for name in ("u", "delta", "B", "C", "z"):
        changed[name][0, :77] = 3.0
    again = run(fused(backend), changed, start)
    assert torch.equal(again["out"][0, 77:], actual["out"][0, 77:])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_optional_arguments_may_be_left_out(backend):
    arguments = make_arguments(2, 40, 6, 4)
    u, delta, A, B, C = (arguments[n] for n in ("u", "delta", "A", "B", "C"))
    delta = delta.abs() * 0.1
    neutral = {"D": torch.zeros(6), "delta_bias": torch.zeros(6), "initial_state": torch.zeros(2, 6, 4)}
    bare = selective_scan(u, delta, A, B, C, backend=backend)
    h, expected = torch.zeros(2, 6, 4), []
    for t in range(40):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None]
        expected.append((h * C[:, t, None]).sum(-1))
    assert relative_error(bare, torch.stack(expected, 1)) < TOLERANCE[torch.float32]
    with_neutral = selective_scan(u, delta, A, B, C, **neutral, backend=backend)
    assert torch.equal(bare, with_neutral)


def test_strided_views_and_extreme_steps():
    arguments = make_arguments(2, 50, 16, 8)
    wide = torch.randn(2, 50, 32)
    arguments["u"], arguments["z"] = wide[..., :16], wide[..., 16:]
    arguments["delta"] = arguments["delta"] * 60  # softplus beyond its linear range, and underflow
    expected = run(naive, arguments, wide=True)
    assert_equal(run(fused("cpu"), arguments), expected, TOLERANCE[torch.float32])


def test_wrong_shapes_and_backends_are_refused():
    arguments = make_arguments(2, 8, 4, 3)
    with pytest.raises(ValueError, match="B must have shape"):
        selective_scan(**{**arguments, "B": arguments["B"][:, :, :2]})
    with pytest.raises(ValueError, match="no backend 'tpu'"):
        selective_scan(**arguments, backend="tpu")
    with pytest.raises(ValueError, match="fp32, bf16 and fp16"):
        selective_scan(**make_arguments(1, 4, 4, 3, torch.float64), backend="cpu")


def test_use_backend_overrides_the_choice():
    arguments = make_arguments(1, 8, 4, 3)
    with pytest.raises(ValueError, match="there is no backend 'tpu'"), use_backend("tpu"):
        pass
    with use_backend("reference"):
        inside = selective_scan(**arguments, delta_softplus=True)
    assert torch.equal(inside, selective_scan(**arguments, delta_softplus=True, backend="reference"))
