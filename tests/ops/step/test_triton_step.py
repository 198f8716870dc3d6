"""The step in Triton against the float64 model: on a CUDA device, else in Triton's interpreter."""

import importlib
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mambabyte.models import MambaByteConfig
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.models.lora import add_adapters
from tests.ops.interpreter import CUDA, DEVICE, INTERPRETED, here, outside, run_in_the_interpreter
from tests.ops.naive import relative_error
from tests.ops.step.test_rounded_weights import with_rounded_weights

pytest.importorskip("triton")
triton_step = importlib.import_module("mambabyte.ops.step.triton")

# fp32 sums of a few hundred terms through two layers; a CUDA device's exponential is less exact.
TOLERANCE = 2e-5 if CUDA else 5e-6
MODELS = {
    "rms_tied": {"d_model": 24, "n_layer": 1, "d_state": 8, "d_conv": 2, "norm": "rms",
                 "tie_embeddings": True},
    "layer": {"d_model": 37, "n_layer": 3, "d_state": 16, "norm": "layer", "dt_rank": 3, "expand": 1},
    "ngrams": {"d_model": 21, "n_layer": 1, "d_state": 5, "d_conv": 1, "expand": 1, "ngram": 4,
               "ngram_buckets": 13, "ngram_width": 5},
}  # fmt: skip


@outside
def test_in_the_interpreter():
    run_in_the_interpreter(Path(__file__), Path(__file__).parents[2] / "generation" / "test_drawing.py")


@pytest.fixture
def few_programs(monkeypatch):
    """Two or three programs for each product: each takes the interpreter several milliseconds."""
    if INTERPRETED:
        monkeypatch.setattr(triton_step, "ENOUGH_PROGRAMS", 2)
        monkeypatch.setattr(triton_step, "THREAD_BYTES", 2**16)


def build(name, **more):
    torch.manual_seed(0)
    return MambaByteConfig(**{**MODELS[name], **more}).build().eval()


def stepper(model, state, storage="fp32"):
    """As `MambaByte.stepper`, on whatever device runs the kernels here."""
    history, layers = model._parts(state)
    before = history[0][0] if history else None
    return triton_step.TritonStepper(
        model.step_weights(), model._embedding_weights(), before, layers, storage
    )


def bytes_for(batch, length):
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(1))


def walk(model, bytes, prompt, storage="fp32"):
    """Logits of `bytes` after a prompt or None, and the layers' states after them, on the CPU in fp64."""
    model = model.to(DEVICE)
    before = model.initial_state(len(bytes)) if prompt is None else model.prefill(prompt.to(DEVICE))[1]
    step = stepper(model, before, storage)
    logits = [step(byte.to(DEVICE)) for byte in bytes.unbind(1)]
    return torch.stack(logits, 1).double().cpu(), [t.double().cpu() for s in step._step.state for t in s]


class Operations(TorchDispatchMode):
    """The operations that PyTorch runs, each at least a kernel."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if operation is not torch.ops.aten.t.default and operation is not torch.ops.aten.detach.default:
            self.operations.append(operation)
        return operation(*arguments, **(options or {}))


def flat(model, state):
    return [tensor for layer in model._parts(state)[1] for tensor in layer]


def assert_close(actual, expected, tolerance=TOLERANCE):
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True) if e.numel()]
    assert max(errors) <= tolerance, errors


@here
@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3, 5])  # at most MATVEC_BATCH, and more
def test_steps_go_on_from_a_state_as_the_model_does_in_double_precision(few_programs, name, batch):
    model, bytes = build(name), bytes_for(batch, 9)
    logits, state = walk(model, bytes[:, 5:], bytes[:, :5])
    expected, expected_state = model.cpu().double().prefill(bytes)
    assert_close([logits, *state], [expected[:, 5:], *flat(model, expected_state)])


@here
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("target", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_an_adapter_is_part_of_the_weights(few_programs, target, batch):
    pytest.importorskip("peft")
    model, bytes = build("rms_tied"), bytes_for(batch, 4)
    add_adapters(model, LoraSettings(rank=2, alpha=4, targets=[target]))
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        logits, _ = walk(model, bytes[:, 1:], bytes[:, :1])
        expected = model.cpu().double()(bytes)[:, 1:]
    assert_close([logits], [expected])
    assert relative_error(build("rms_tied")(bytes)[:, 1:], expected) > 20 * TOLERANCE


@here
@torch.no_grad()
def test_a_state_does_not_drift(few_programs):
    model, bytes = build("rms_tied"), bytes_for(1, 80)
    logits, state = walk(model, bytes[:, 1:], bytes[:, :1])
    expected, expected_state = model.cpu().double().prefill(bytes)
    assert_close([logits, *state], [expected[:, 1:], *flat(model, expected_state)])


@here
@torch.no_grad()
@pytest.mark.parametrize(("batch", "tolerance"), [(2, TOLERANCE), (6, 2e-2)])
def test_bf16_weights_are_the_rounded_ones(few_programs, batch, tolerance):
    """With torch.mm (6 rows) the vectors between products have 8 bits too."""
    model, bytes = build("layer"), bytes_for(batch, 3)
    expected, plain = with_rounded_weights(model, "bf16"), model.double()(bytes)
    model.float()
    logits, _ = walk(model, bytes, None, "bf16")
    assert_close([logits], [expected(bytes)], tolerance)
    assert relative_error(expected(bytes), plain) > 10 * TOLERANCE  # rounding shows at all


@here
@torch.no_grad()
def test_a_model_in_bf16_is_read_as_it_is(few_programs):
    model, bytes = build("layer").bfloat16(), bytes_for(2, 3)
    logits, _ = walk(model, bytes, None)
    assert_close([logits], [model.cpu().double()(bytes)])


@here
@torch.no_grad()
@pytest.mark.parametrize(("batch", "kernels", "products"), [(1, 4, 0), (4, 4, 0), (5, 3, 3), (256, 3, 3)])
def test_a_layer_is_at_most_six_launches(monkeypatch, batch, kernels, products):
    model = build("layer").to(DEVICE)
    step = stepper(model, model.initial_state(batch))._step
    launched = []
    monkeypatch.setattr(triton_step.Launch, "__call__", lambda launch: launched.append(launch))
    with Operations() as run:
        for launch in step.layers[1]:
            launch()
        assert len(launched) == kernels and run.operations == [torch.ops.aten.mm.out] * products
        step()
    # beside the layers: embedding, last norm and head
    assert len(launched) + len(run.operations) - kernels - products <= 3 * (kernels + products) + 3


@here
@torch.no_grad()
def test_the_state_that_was_given_is_left_as_it_was_and_wrong_shapes_are_refused(few_programs):
    model = build("ngrams").to(DEVICE)
    state = model.prefill(bytes_for(2, 4).to(DEVICE))[1]
    kept = [tuple(tensor.clone() for tensor in layer) for layer in state]
    byte = torch.tensor([1, 2], device=DEVICE)
    first, second = stepper(model, state)(byte), stepper(model, state)(byte)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for x, y in zip(state, kept, strict=True) for a, b in zip(x, y, strict=True))
    with pytest.raises(ValueError, match=r"byte must have the shape \(2,\), not \(1,\)"):
        stepper(model, state)(byte[:1])
    with pytest.raises(ValueError, match="the layers' states must have the shapes"):
        stepper(model, [*state[:1], state[1][::-1]])


def test_a_recording_is_warmed_up_on_a_stream_of_its_own_and_replayed():
    calls, names = [], ("device", "Stream", "current_stream", "stream", "graph", "CUDAGraph")
    with ExitStack() as stack:
        cuda = {name: stack.enter_context(patch.object(torch.cuda, name, autospec=True)) for name in names}
        replay = triton_step.recorded(lambda: calls.append("launches"), torch.device("cuda", 1))
    recording = cuda["CUDAGraph"].return_value
    assert calls == ["launches"] * 2 and replay is recording.replay
    cuda["device"].assert_called_once_with(torch.device("cuda", 1))
    cuda["stream"].assert_called_once_with(cuda["Stream"].return_value)
    cuda["graph"].assert_called_once_with(recording, capture_error_mode="thread_local")


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA or INTERPRETED, reason="needs a CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("storage", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [1, 4, 8, 256])
def test_a_graph_computes_what_the_eager_step_does(batch, storage):
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=448, n_layer=4, ngram=3, ngram_buckets=64).build().eval().to("cuda")
    bytes = bytes_for(batch, 40).to("cuda")
    state = model.prefill(bytes[:, :20])[1]
    step = model.stepper(state, storage)
    logits = torch.stack([step(byte) for byte in bytes[:, 20:].unbind(1)], 1).double().cpu()
    rounded = with_rounded_weights(model.cpu(), storage) if storage == "bf16" else model.cpu().double()
    expected = rounded(bytes[:, 20:].cpu(), [tuple(tensor.cpu() for tensor in layer) for layer in state])
    few = batch <= triton_step.MATVEC_BATCH
    assert_close([logits], [expected], TOLERANCE if storage == "fp32" or few else 2e-2)
