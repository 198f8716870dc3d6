"""mamba_ssm's scan: compared with the reference where it is installed; its errors and layouts anywhere."""

import importlib
import sys

import pytest
import torch

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


def test_a_gradient_of_the_final_state_is_refused():
    arguments = make_arguments(1, 4, 3, 2)
    state = arguments.pop("initial_state")
    inputs = ScanInputs(*arguments.values(), True, None, None)
    with pytest.raises(ValueError, match="final state"):
        mamba_ssm.backward(arguments["u"], state, inputs, torch.empty(0))


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
