"""The fused ops as PyTorch operators: schemas, fake tensors, autocast, torch.compile."""

import pytest
import torch

from mambabyte.models import MambaByteConfig
from mambabyte.ops import causal_conv1d, selective_scan, ssd
from tests.ops.causal_conv1d.test_causal_conv1d import make_arguments as conv_arguments
from tests.ops.selective_scan.test_selective_scan import make_arguments as scan_arguments
from tests.ops.ssd.test_ssd import arguments as ssd_arguments


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_opcheck_of_the_scan(full, resets):
    u, delta, A, B, C, D, z, bias, state = (v.requires_grad_() for v in scan_arguments(2, 37, 20, 3).values())
    start = torch.rand(2, 37, generator=torch.Generator().manual_seed(0)) < 0.1 if resets else None
    optional = (D, z, bias) if full else (None, None, None)
    arguments = (u, delta, A, B, C, *optional, True, state if full else None, start, True, "cpu")
    torch.library.opcheck(torch.ops.mambabyte.selective_scan.default, arguments)


@pytest.mark.parametrize("resets", [False, True])
def test_opcheck_of_the_convolution(resets):
    x, weight, bias, state = (v.detach().requires_grad_() for v in conv_arguments(2, 13, 20, 4))
    start = torch.rand(2, 13, generator=torch.Generator().manual_seed(0)) < 0.2 if resets else None
    arguments = (x, weight, bias, state if resets else None, start, resets, "cpu")
    torch.library.opcheck(torch.ops.mambabyte.causal_conv1d.default, arguments)


@pytest.mark.parametrize("full", [False, True])
def test_opcheck_of_the_state_space_dual(full):
    x, decay, B, C, state = ssd_arguments(37, groups=2, dtype=torch.float32).values()
    start = torch.rand(2, 37, generator=torch.Generator().manual_seed(0)) < 0.1
    optional = (state, start) if full else (None, None)
    arguments = (x, decay if full else None, B, C, *optional, True, "cpu")
    torch.library.opcheck(torch.ops.mambabyte.ssd.default, arguments)


@pytest.mark.parametrize("op", [selective_scan, ssd])
def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones(op):
    from torch._subclasses.fake_tensor import FakeTensorMode

    small = torch.bfloat16
    arguments = ssd_arguments(37, dtype=small) if op is ssd else scan_arguments(2, 37, 20, 3, small)
    arguments = {name: value.detach() for name, value in arguments.items()}
    real = op(**arguments, return_final_state=True, backend="cpu")
    with FakeTensorMode() as mode:
        fake_arguments = {name: mode.from_tensor(value).requires_grad_() for name, value in arguments.items()}
        fake = op(**fake_arguments, return_final_state=True, backend="cpu")
    for f, r in zip(fake, real, strict=True):
        assert (f.shape, f.dtype) == (r.shape, r.dtype)


def test_autocast_leaves_the_parameters_of_the_ops_in_fp32():
    x, weight, bias, _ = conv_arguments(1, 9, 16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(causal_conv1d(x, weight, bias), causal_conv1d(x, weight, bias, backend="cpu"))
        out = selective_scan(**scan_arguments(1, 9, 16, 4), delta_softplus=True)
    assert out.dtype == torch.float32


def test_a_compiled_model_gives_the_same_loss_and_gradients():
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=32, n_layer=2, d_state=4).build()
    bytes = torch.randint(0, 256, (2, 41))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def loss_and_gradients(forward):
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(bytes[:, :-1]).flatten(0, 1), bytes[:, 1:].flatten())
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}

    (loss, gradients), (expected_loss, expected) = loss_and_gradients(compiled), loss_and_gradients(model)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in gradients.items():
        # the same operators in the same order but for aten decompositions
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-7), name
