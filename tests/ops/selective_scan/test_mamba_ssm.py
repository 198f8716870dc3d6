"""mamba_ssm's scan: compared with the reference where it is installed; its errors and layouts, and our model
on it, anywhere, through a stand-in."""

import importlib
import sys

import pytest
import torch

from mambabyte.generation import Sampler, generate
from mambabyte.models import MambaByteConfig
from mambabyte.ops import backends, selective_scan, use_backend
from mambabyte.ops.selective_scan import mamba_ssm
from mambabyte.ops.selective_scan.reference import ScanInputs, selective_scan_reference
from tests.ops.naive import relative_error
from tests.ops.selective_scan.test_selective_scan import make_arguments

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def test_availability_says_why():
    usable, reason = mamba_ssm.available()
    assert usable == (reason == "mamba_ssm's selective_scan_cuda")


@pytest.mark.parametrize("name", ["initial_state", "document_start"])
def test_what_it_cannot_do_is_refused_by_name(name):
    arguments = make_arguments(1, 4, 3, 2)
    given = {"initial_state": arguments.pop("initial_state"), "document_start": torch.ones(1, 4).bool()}
    chosen = {key: value if key == name else None for key, value in given.items()}
    with pytest.raises(ValueError, match=name):
        mamba_ssm.forward(ScanInputs(**arguments, delta_softplus=True, **chosen), keep_states=True)


class Extension:
    """The extension's two functions and layouts, computed by the reference; they accept what it accepts."""

    @staticmethod
    def scan(u, delta, A, B, C, D, z, delta_bias, softplus):
        def time_first(tensor):
            return tensor.transpose(-1, -2)

        inputs = ScanInputs(
            time_first(u), time_first(delta), A, time_first(B[:, 0]), time_first(C[:, 0]), D,
            None if z is None else time_first(z), delta_bias, softplus, None, None,
        )  # fmt: skip
        return selective_scan_reference(inputs)

    def fwd(self, u, delta, A, B, C, D, z, delta_bias, softplus):
        assert all(x.stride(-1) == 1 and x.dtype == u.dtype for x in (u, delta, B, C))
        ungated, state = self.scan(u, delta, A, B, C, D, None, delta_bias, softplus)
        x = torch.stack([torch.zeros_like(state), state], -1).flatten(2)[:, :, None]
        out = ungated.transpose(1, 2).contiguous()
        if z is None:
            return [out, x]
        return [out, x, self.scan(u, delta, A, B, C, D, z, delta_bias, softplus)[0].transpose(1, 2)]

    def bwd(
        self, u, delta, A, B, C, D, z, delta_bias, grad, x, out, grad_z, softplus, recompute_out_z
    ):  # fmt: skip
        assert grad_z is None and not recompute_out_z and (z is None) == (out is None)
        assert x.shape == (*u.shape[:2], 1, 2 * A.shape[1])
        inputs = (u, delta, A, B, C, D, z, delta_bias)
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        with torch.enable_grad():
            result, _ = self.scan(*leaves, softplus)
        present = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(result, present, grad.transpose(1, 2)))
        grads = [None if leaf is None else next(found) for leaf in leaves]
        return [*grads[:6], grads[7], *([] if z is None else [grads[6]])]


@pytest.mark.parametrize("gated", [True, False])
def test_layouts_in_and_out_of_the_extension(monkeypatch, gated):
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", Extension())
    compare(gated, torch.float32, "cpu", 7)


@pytest.fixture
def stand_in(monkeypatch):
    """mamba_ssm as an available backend of CPU tensors, and the only one beside the reference."""
    extension = Counted()
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", extension)
    monkeypatch.setattr(mamba_ssm, "available", lambda: (True, "a stand-in"))
    monkeypatch.setitem(backends.BACKENDS, "selective_scan", ("mamba_ssm", "reference"))
    monkeypatch.setitem(backends.BACKENDS, "mamba_step", ("reference",))
    serves, cuda = backends._serves, torch.device("cuda")
    monkeypatch.setattr(
        backends,
        "_serves",
        lambda name, device, dtype: serves(name, cuda if name == "mamba_ssm" else device, dtype),
    )
    backends._warn_once.cache_clear()
    return extension


class Counted(Extension):
    """Counts its forward and backward passes."""

    def __init__(self):
        self.calls = []

    def fwd(self, *arguments):
        self.calls.append("fwd")
        return super().fwd(*arguments)

    def bwd(self, *arguments):
        self.calls.append("bwd")
        return super().bwd(*arguments)


ASKED = {
    "initial_state": torch.zeros(1, 3, 2),
    "document_start": torch.ones(1, 4).bool(),
}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_what_it_cannot_do_is_passed_over_and_said_once(stand_in, caplog, name):
    arguments = make_arguments(1, 4, 3, 2) | {"initial_state": None}
    selective_scan(**arguments)
    assert stand_in.calls == ["fwd"] and not caplog.records
    arguments[name] = ASKED[name]
    expected = selective_scan(**arguments, backend="reference")
    for _ in range(3):
        assert torch.equal(selective_scan(**arguments), expected)
    assert stand_in.calls == ["fwd"]
    assert [record.getMessage() for record in caplog.records] == [
        f"using the reference selective_scan where mamba_ssm cannot serve: mamba_ssm's scan takes no {name}"
    ]
    with pytest.raises(ValueError, match=f"cannot run on its mamba_ssm backend: .* takes no {name}"):
        selective_scan(**arguments, backend="mamba_ssm")


def test_many_states_and_fp64_are_passed_over(stand_in):
    with use_backend("mamba_ssm"):
        for states, dtype in ((257, torch.float32), (2, torch.float64)):
            arguments = make_arguments(1, 2, 1, states, dtype) | {"initial_state": None}
            assert selective_scan(**arguments).dtype == dtype
            with pytest.raises(ValueError, match="257" if states == 257 else "float64"):
                selective_scan(**arguments, backend="mamba_ssm")
    assert not stand_in.calls


def model_and_bytes():
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=16, n_layer=2, d_state=3).build()
    return model, torch.randint(0, 256, (2, 12))


@pytest.mark.parametrize(("marks", "calls"), [(False, ["fwd"] * 2 + ["fwd", "bwd"] * 2), (True, [])])
def test_our_model_trains_on_it(stand_in, marks, calls):
    """With document starts, by the reference. In backward, the extension's forward pass runs once more."""
    model, bytes = model_and_bytes()
    start = torch.zeros_like(bytes).bool()
    start[1, 5] = True

    def gradients():
        model.zero_grad()
        model(bytes, document_start=start if marks else None).logsumexp(-1).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    actual = gradients()
    assert stand_in.calls == calls
    with use_backend("reference"):
        expected = gradients()
    for gradient, one in zip(actual, expected, strict=True):
        assert relative_error(gradient, one) < TOLERANCE[torch.float32]


def test_our_model_generates_on_it(stand_in):
    """The prompt on the extension, each byte after it, which begins from a state, on the reference."""
    model, _ = model_and_bytes()
    sampler = Sampler(temperature=0)
    with use_backend("mamba_ssm"):
        text = list(generate(model, b"abc", 5, sampler))
    assert stand_in.calls == ["fwd", "fwd"]
    with use_backend("reference"):
        assert text == list(generate(model, b"abc", 5, sampler))


def test_the_final_states_gradient_is_the_references(stand_in):
    arguments = make_arguments(2, 5, 3, 2) | {"initial_state": None}
    leaves = [tensor for name, tensor in arguments.items() if name in NAMES]

    def gradients(backend):
        for leaf in leaves:
            leaf.requires_grad_().grad = None
        out, state = selective_scan(
            **arguments, delta_softplus=True, return_final_state=True, backend=backend
        )
        (out.sum() + state.square().sum()).backward()
        return [leaf.grad for leaf in leaves]

    actual, expected = gradients("mamba_ssm"), gradients("reference")
    assert stand_in.calls == ["fwd"]
    for gradient, one in zip(actual, expected, strict=True):
        assert relative_error(gradient, one) < TOLERANCE[torch.float32]


@pytest.mark.gpu
@pytest.mark.skipif(not mamba_ssm.available()[0], reason=mamba_ssm.available()[1])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 70, 2049])
def test_values_and_gradients_on_the_device(length, dtype, gated):
    importlib.import_module("selective_scan_cuda")
    compare(gated, dtype, "cuda", length)


def compare(gated, dtype, device, length):
    arguments = {n: v.to(device) for n, v in make_arguments(2, length, 5, 3, dtype).items() if n in NAMES}
    if not gated:
        arguments["z"] = None
    tensors = list(arguments.values())
    inputs = ScanInputs(*tensors, True, None, None)
    out, state, states = mamba_ssm.forward(inputs, keep_states=True)
    leaves = [None if t is None else t.double().requires_grad_() for t in tensors]
    expected, expected_state = selective_scan_reference(ScanInputs(*leaves, True, None, None))
    assert relative_error(out, expected) < TOLERANCE[dtype]
    assert relative_error(state, expected_state) < TOLERANCE[dtype]
    assert states.shape == mamba_ssm.states_shape(tensors[0], tensors[2])

    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    present = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(expected, present, grad.double()))
    actual = mamba_ssm.backward(grad, None, inputs, states)
    for tensor, gradient in zip(tensors, actual, strict=False):
        if tensor is None:
            assert gradient is None
        else:
            assert gradient.dtype == tensor.dtype and gradient.shape == tensor.shape
            assert relative_error(gradient, next(found)) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not mamba_ssm.available()[0], reason=mamba_ssm.available()[1])
def test_our_model_on_the_device_trains_and_generates():
    model, bytes = (x.cuda() for x in model_and_bytes())
    found = {}
    for backend in ("mamba_ssm", "reference"):
        with use_backend(backend):
            model.zero_grad()
            model(bytes).logsumexp(-1).sum().backward()
            gradients = [parameter.grad.clone() for parameter in model.parameters()]
            found[backend] = gradients, list(generate(model, b"abc", 5, Sampler(temperature=0)))
    (actual, text), (expected, same_text) = found.values()
    assert text == same_text
    for gradient, one in zip(actual, expected, strict=True):
        assert relative_error(gradient, one) < 1e-3  # matrix products on the device, in other orders
