"""H3, the gated MLP and Mamba's block."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, silu

from mambabyte.lineage import block
from mambabyte.models import MambaByteConfig
from mambabyte.models.mamba import Mixer
from mambabyte.ops import causal_conv1d


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 11])
def test_the_convolution_is_our_op(length: int, width: int) -> None:
    x, weight = random(2, length, 5), random(5, width)
    expected = causal_conv1d(x, weight, None)
    assert torch.allclose(silu(block.causal_convolution(x, weight)), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", [1, 2, 19])
@pytest.mark.parametrize("width", [1, 4], ids=["no-convolution", "convolution"])
def test_mamba_is_our_mixer_with_its_gradients(length: int, width: int) -> None:
    torch.manual_seed(0)
    mixer = Mixer(MambaByteConfig(d_model=12, d_state=3, d_conv=width)).double()
    x = random(2, length, 12)
    parameters = dict(mixer.named_parameters())
    expected, _ = mixer(x, None, None, False)
    found = block.mamba(x, parameters)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), [*parameters.values()]),
        torch.autograd.grad(expected.square().sum(), [*parameters.values()]),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_mamba_without_its_scan_and_convolution_is_a_gated_mlp() -> None:
    mixer = Mixer(MambaByteConfig(d_model=12, d_state=3)).double()
    with torch.no_grad():
        mixer.x_proj.weight.zero_()  # B = C = 0: the skip connection alone is left, D = 1
        mixer.conv1d.weight.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
        mixer.conv1d.bias.zero_()
    x = random(1, 7, 12)
    a, z = linear(x, mixer.in_proj.weight).chunk(2, dim=-1)
    assert torch.allclose(
        block.mamba(x, mixer.state_dict()), linear(silu(a) * silu(z), mixer.out_proj.weight), atol=1e-13
    )


def test_h3s_shift_lets_a_key_meet_the_byte_before() -> None:
    k, v = random(1, 6, 2), random(1, 6, 2)
    ones = torch.ones(1, 6, 2).double()
    y = block.h3(ones, k, v, torch.tensor([[1.0, 0.0]]).double().expand(2, 2), lambda x: x)
    assert torch.equal(y[:, 1:], k[:, :-1] * v[:, 1:]) and not y[:, 0].any()
