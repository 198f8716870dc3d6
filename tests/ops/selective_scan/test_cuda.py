"""The CUDA scan against the loop in double precision: its sources compiled for this CPU, or on a device."""

import pytest
import torch

from mambabyte.ops.cpu.build import KernelUnavailable
from mambabyte.ops.cuda import compile
from mambabyte.ops.selective_scan import cuda
from mambabyte.ops.selective_scan.custom_op import selective_scan_fused
from mambabyte.ops.selective_scan.reference import ScanInputs, selective_scan_reference
from tests.ops.cuda.emulation import COMPILER, Module, emulated_kernels
from tests.ops.naive import relative_error
from tests.ops.selective_scan.test_selective_scan import assert_equal, make_arguments, naive, run

# As in test_selective_scan.py: roundings of 6e-8 in sums of a few hundred terms; outputs of 8 (11) bits.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def scan(leaves, document_start, softplus=True):
    *tensors, initial_state = (leaves.get(name) for name in NAMES)
    return selective_scan_fused("cuda", ScanInputs(*tensors, softplus, initial_state, document_start))


def reference(leaves, document_start, softplus=True):
    *tensors, initial_state = (leaves.get(name) for name in NAMES)
    return selective_scan_reference(ScanInputs(*tensors, softplus, initial_state, document_start))


def differentiate(function, arguments, start=None, wide=False, **options):
    """As `run`, for some of the arguments."""
    leaves = {n: (v.double() if wide else v).detach().requires_grad_() for n, v in arguments.items()}
    outputs = function(leaves, start, **options)
    generator = torch.Generator().manual_seed(1)
    # Weights of few bits, so that the gradient of the output is the same number in every precision.
    weights = [torch.randn(o.shape, generator=generator).bfloat16().to(o) for o in outputs]
    loss = sum((o.double() * w.double()).sum() for o, w in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(("out", "state", *leaves), (*outputs, *gradients), strict=True))


@pytest.fixture
def emulated(monkeypatch):
    """The kernels on this CPU, and a device on which one block fills every multiprocessor there is."""
    if COMPILER is None:
        pytest.skip("no C++ compiler, or not Linux")
    monkeypatch.setattr(cuda, "kernels", emulated_kernels)
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: 1)


@pytest.fixture(params=["one span", "spans", "spans in launches", "launches"])
def division(request, emulated, monkeypatch):
    """The ways to divide a scan of 3 to 9 tiles of 2 x 2 blocks."""
    if request.param.startswith("spans"):
        monkeypatch.setattr(cuda, "SHORTEST_SPAN", 1)
        monkeypatch.setattr(cuda, "multiprocessors", lambda device: 8)  # two blocks on each: four spans
    if request.param.endswith("launches"):
        monkeypatch.setattr(cuda, "PARTIAL_BYTES", 2 * 8 * 2 * 2 * cuda.TILE * 16)  # two tiles at a time


@pytest.mark.parametrize(
    ("batch", "length", "channels", "states"),
    [
        (2, 1, 1, 16),
        (1, 31, 63, 1),
        (2, 32, 64, 16),
        (1, 33, 65, 8),
        (2, 67, 66, 16),
        (1, 61, 33, 17),
        (1, 33, 34, 32),
        (2, 37, 17, 64),
        (1, 34, 9, 128),
        (1, 127, 5, 16),
        (2, 128, 3, 8),
        (1, 161, 3, 32),
    ],
)
def test_values_and_gradients_equal_the_naive_loop(emulated, batch, length, channels, states):
    arguments = make_arguments(batch, length, channels, states)
    assert_equal(run(scan, arguments), run(naive, arguments, wide=True), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [72, 67])  # rows of which each is aligned, and of which none is
def test_low_precision_activations_keep_fp32_arithmetic(emulated, dtype, channels):
    arguments = make_arguments(2, 70, channels, 16, dtype)
    actual, expected = run(scan, arguments), run(naive, arguments, wide=True)
    assert actual["out"].dtype == actual["grad_u"].dtype == dtype and actual["grad_A"].dtype == torch.float32
    assert_equal(actual, expected, TOLERANCE[dtype])
    assert relative_error(actual["state"], expected["state"]) < TOLERANCE[torch.float32]


def test_activations_of_several_types_are_read_in_fp32(emulated):
    arguments = make_arguments(1, 9, 8, 16)
    arguments["u"], arguments["B"] = arguments["u"].bfloat16(), arguments["B"].bfloat16()
    actual, expected = run(scan, arguments), run(naive, arguments, wide=True)
    assert actual["out"].dtype == actual["grad_u"].dtype == actual["grad_B"].dtype == torch.bfloat16
    assert_equal(actual, expected, TOLERANCE[torch.bfloat16])
    assert relative_error(actual["grad_delta"], expected["grad_delta"]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("length", [71, 129, 257])
def test_every_division_of_time_gives_the_same_values(division, length):
    arguments = make_arguments(2, length, 66, 16)
    start = torch.zeros(2, length, dtype=torch.bool)
    start[0, [0, 31, 40, 64]] = True
    start[1, length - 1] = True
    actual, expected = run(scan, arguments, start), run(naive, arguments, start, wide=True)
    assert_equal(actual, expected, TOLERANCE[torch.float32])
    again = run(scan, arguments, start)
    assert all(torch.equal(actual[name], again[name]) for name in actual)


def test_divisions_are_what_they_are_meant_to_be(emulated, monkeypatch):
    inputs = make_arguments(2, 257, 66, 16)
    *tensors, _ = inputs.values()
    spans = []
    for processors in (1, 5, 6, 7, 1000):
        monkeypatch.setattr(cuda, "multiprocessors", lambda device, count=processors: count)
        monkeypatch.setattr(cuda, "SHORTEST_SPAN", 3)
        x = cuda._Scan(ScanInputs(*tensors, True, None, None))
        spans.append((x.spans, x.span_tiles))
    assert spans == [(1, 9), (1, 9), (3, 3), (3, 3), (3, 3)]


def test_document_start_resets_the_state_and_leaks_nothing(emulated):
    arguments = make_arguments(2, 40, 20, 16)
    arguments["A"][:, 3:6] = torch.tensor([0.0, 0.1, -1e-30])  # rates at which a state does not decay
    start = torch.zeros(2, 40, dtype=torch.bool)
    start[0, [0, 7, 8, 10, 33]] = True
    actual = run(scan, arguments, start)
    assert_equal(actual, run(naive, arguments, start, wide=True), TOLERANCE[torch.float32])
    assert not actual["grad_initial_state"][0].any()

    changed = {name: value.clone() for name, value in arguments.items()}
    for name in ("u", "delta", "B", "C", "z"):
        changed[name][0, :10] = 3.0
    again = run(scan, changed, start)
    for name in ("out", "grad_u", "grad_delta", "grad_B", "grad_C", "grad_z"):
        assert torch.equal(again[name][0, 10:], actual[name][0, 10:]), name


@pytest.mark.parametrize("cut", [1, 32, 39])
def test_a_scan_cut_anywhere_equals_the_whole_with_gradients(emulated, cut):
    arguments = make_arguments(1, 40, 5, 16)

    def split(leaves, start):
        def part(piece, state):
            timed = {n: leaves[n][:, piece] for n in ("u", "delta", "B", "C", "z")}
            return scan({**leaves, **timed, "initial_state": state}, start)

        first, state = part(slice(None, cut), leaves["initial_state"])
        second, state = part(slice(cut, None), state)
        return torch.cat([first, second], 1), state

    assert_equal(run(split, arguments), run(naive, arguments, wide=True), TOLERANCE[torch.float32])


@pytest.mark.parametrize("missing", ["D", "z", "delta_bias", "initial_state", "all"])
def test_optional_arguments_may_be_left_out(emulated, missing):
    arguments = make_arguments(1, 35, 10, 16)
    for name in NAMES[5:] if missing == "all" else [missing]:
        del arguments[name]
    softplus = missing != "all"
    if not softplus:
        arguments["delta"] = arguments["delta"].abs() * 0.1
    expected = differentiate(reference, arguments, wide=True, softplus=softplus)
    assert_equal(differentiate(scan, arguments, softplus=softplus), expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("offset", [0, 3])  # from an aligned address, and from another
def test_strided_views_and_step_sizes_at_both_ends(emulated, offset):
    arguments = make_arguments(2, 35, 20, 16)
    wide, columns = torch.randn(2, 35, 64 + offset), torch.randn(2, 40, 50)
    arguments["u"], arguments["z"] = wide[..., offset : offset + 20], wide[..., -20:]
    arguments["B"], arguments["C"] = columns[:, 5:, 2:18], columns[:, :35, 18:34]
    arguments["delta"] = (arguments["delta"] * 60).transpose(0, 1).contiguous().transpose(0, 1)
    assert_equal(run(scan, arguments), run(naive, arguments, wide=True), TOLERANCE[torch.float32])
    arguments["u"] = torch.randn(2, 20, 35).transpose(1, 2)
    assert_equal(run(scan, arguments), run(naive, arguments, wide=True), TOLERANCE[torch.float32])


def test_gradients_are_whole_and_states_are_kept_on_request(emulated):
    *tensors, initial_state = make_arguments(1, 129, 5, 17).values()
    inputs = ScanInputs(*tensors, True, initial_state, None)
    out, state, states = cuda.forward(inputs, True)
    assert states.shape == cuda.states_shape(inputs.u, inputs.A) == (1, 2, 5, 32)
    gradients = cuda.backward(out.expand_as(out), None, inputs._replace(initial_state=None), states)
    assert all(gradient.is_contiguous() for gradient in gradients)
    again, state_again, nothing = cuda.forward(inputs, False)
    assert torch.equal(again, out) and torch.equal(state_again, state) and nothing.numel() == 0


@pytest.mark.parametrize("channels", [20, 21])
def test_the_gradient_of_z_is_written_into_given_rows(emulated, channels):
    *tensors, _ = make_arguments(2, 40, channels, 5).values()
    inputs = ScanInputs(*tensors, True, None, None)
    out, _, states = cuda.forward(inputs, True)
    wide = torch.zeros(2, 40, 2 * channels)
    expected = cuda.backward(out, None, inputs, states)[6]
    cuda.backward(out, None, inputs, states, wide[..., channels:])
    assert torch.equal(wide[..., channels:], expected) and not wide[..., :channels].any()


def test_the_operator_agrees_with_its_fake_tensors(emulated):
    arguments = make_arguments(2, 37, 20, 3, torch.bfloat16)
    u, delta, A, B, C, D, z, bias, state = (v.requires_grad_() for v in arguments.values())
    given = (u, delta, A, B, C, D, z, bias, True, state, None, True, "cuda")
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.mambabyte.selective_scan.default, given, test_utils=checks)


def barriers():
    """(file, line) of each but those without which a thread would read from a wild address."""
    for path in sorted(compile.HERE.glob("selective_scan*.cuh")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.strip().startswith("__syncthreads") and "addresses" not in line:
                yield path.name, number


@pytest.mark.parametrize(("length", "spans"), [(90, False), (200, True)])
def test_whichever_warp_runs_first_gives_the_same_bits_but_for_each_barrier(
    emulated, monkeypatch, length, spans
):
    """Warps run one after another from barrier to barrier, so that what they read too early is wrong, and
    another order shows what they overwrite too early."""
    monkeypatch.setattr(cuda, "SHORTEST_SPAN", 1)
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: 1 + spans)  # one span, or four
    arguments = make_arguments(1, length, 20, 16)
    usual = run(scan, arguments)

    def the_same(backwards):
        monkeypatch.setattr(Module, "backwards", backwards)
        return all(torch.equal(x, usual[name]) for name, x in run(scan, arguments).items())

    assert the_same(backwards=True)
    for barrier in barriers():
        if (barrier[0] == "selective_scan_spans.cuh") == spans:
            monkeypatch.setattr(Module, "ignored", barrier)
            assert not (the_same(backwards=False) and the_same(backwards=True)), barrier


def test_what_cannot_be_scanned_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert (
        cuda.cannot_serve(dtype=torch.float32, states=129) == "the CUDA scan has at most 128 states, not 129"
    )

    def refuse(*_):
        raise KernelUnavailable("the driver refuses")

    monkeypatch.setattr(cuda, "kernels", refuse)
    assert cuda.cannot_serve(dtype=torch.float32, states=16) == "the driver refuses"
    monkeypatch.setattr(cuda, "kernels", lambda *_: None)
    assert cuda.cannot_serve(dtype=torch.float32, states=16, document_start=True) is None
    assert cuda.cannot_serve(dtype=torch.float32) is None


def test_what_nvrtc_refuses_is_asked_once_for_each_specialisation(monkeypatch):
    calls = []

    def refuse(*_, **macros):
        calls.append(macros)
        raise KernelUnavailable("NVRTC refuses")

    monkeypatch.setattr(cuda, "compile_cubin", refuse)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 99)
    for _ in range(2):
        assert cuda.cannot_serve(dtype=torch.bfloat16, states=3) == "NVRTC refuses"
    assert calls == [{"STATES": 8, "ELEMENT": "bfloat16"}]
    cuda._load.cache_clear()


def test_availability_has_a_reason():
    usable, reason = cuda.available()
    assert usable == torch.cuda.is_available() or "NVRTC" in reason or "below 8.0" in reason
    assert reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("states", [1, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("length", [1, 2, 31, 33, 1000, 4097])
def test_grid_on_the_device(length, states, dtype):
    arguments = {name: v.cuda() for name, v in make_arguments(2, length, 70, states, dtype).items()}
    start = (torch.rand(2, length, generator=torch.Generator().manual_seed(2)) < 2 / length).cuda()
    actual = differentiate(scan, arguments, start)
    # The hardware's exponential and reciprocal are off by two units in the last place.
    tolerance = max(TOLERANCE[dtype], 2e-5)
    assert_equal(actual, differentiate(reference, arguments, start, wide=True), tolerance)
    again = differentiate(scan, arguments, start)
    assert all(torch.equal(actual[name], again[name]) for name in actual)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 8])
def test_model_sizes_on_the_device(batch):
    """One batch element is cut into spans; eight fill the device."""
    arguments = {name: v.cuda() for name, v in make_arguments(batch, 2048, 2048, 16, torch.bfloat16).items()}
    actual = differentiate(scan, arguments)
    assert_equal(actual, differentiate(reference, arguments), TOLERANCE[torch.bfloat16])
    again = differentiate(scan, arguments)
    assert all(torch.equal(actual[name], again[name]) for name in actual)
