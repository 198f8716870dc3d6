"""Each mixer against its paper's equations: values and gradients in fp64, with a state and without."""

import pytest
import torch
from torch.nn.functional import softplus

from mambabyte.models import mixers
from mambabyte.models.mixers import mamba2
from mambabyte.models.mixers.hippo import normal_and_low_rank
from mambabyte.models.mixers.long_convolution import long_convolution
from mambabyte.models.mixers.mamba3 import summed_angles
from mambabyte.models.mixers.mlp import build_mlp
from mambabyte.models.mixers.rwkv import wkv
from mambabyte.ops.ssd import ssd
from tests.models.mixers import naive

PLACE = mixers.Place(width=8, d_model=8, layer=1, n_layer=3)
# The mixer, and its equations.
CASES = {
    "attention": (mixers.AttentionConfig(n_head=2), naive.attention),
    "attention-window": (mixers.AttentionConfig(n_head=2, window=5), naive.attention),
    "cnn": (mixers.CNNConfig(kernel_size=3, dilation=2), naive.cnn),
    "h3": (mixers.H3Config(d_state=6, d_conv=3), naive.h3),
    "linear_attention": (mixers.LinearAttentionConfig(n_head=2), naive.linear_attention),
    "lstm": (mixers.LSTMConfig(), naive.lstm),
    "mamba2": (mixers.Mamba2Config(d_state=3, head_dim=8, chunk=16), naive.mamba2),
    "mamba2-groups": (
        mixers.Mamba2Config(d_state=3, head_dim=2, expand=3, n_groups=4, d_conv=2),
        naive.mamba2,
    ),
    "mamba3": (mixers.Mamba3Config(d_state=9, head_dim=8, chunk=16), naive.mamba3),
    "mamba3-groups": (
        mixers.Mamba3Config(d_state=6, head_dim=2, expand=3, n_groups=4, rotated_share=1),
        naive.mamba3,
    ),
    "rwkv": (mixers.RWKVConfig(), naive.rwkv),
    "s4": (mixers.S4Config(d_state=6), naive.s4),
    "s4d-lin": (mixers.S4DConfig(d_state=6), naive.s4d),
    "s4d-inv": (mixers.S4DConfig(d_state=6, init="inv"), naive.s4d),
    "s4d-legs": (mixers.S4DConfig(d_state=6, init="legs"), naive.s4d),
    "s4d-real": (mixers.S4DConfig(d_state=6, init="real"), naive.s4d),
    "s6": (mixers.S6Config(d_state=3), naive.s6),
    "ssd": (mixers.SSDConfig(d_state=3, n_head=2, chunk=16), naive.ssd),
}


def results(mixer, function, x):
    """The output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.arange(1.0, y.numel() + 1, dtype=y.dtype).view_as(y).sin()
    named = dict(mixer.named_parameters())
    gradients = torch.autograd.grad((y * weights).sum(), [x, *named.values()], materialize_grads=True)
    return {"y": y.detach(), **dict(zip(["x", *named], gradients, strict=True))}


def assert_equal(mixer, equations, length):
    x = torch.randn(2, length, 8, dtype=torch.float64)
    expected = results(mixer, lambda x: equations(mixer, x), x)
    for state in (None, mixer.initial_state(2)):
        actual = results(mixer, lambda x, state=state: mixer(x, state)[0], x)
        for name in expected:
            error = (actual[name] - expected[name]).abs().max()
            # fp64, sums of up to 65 terms and states, some of opposite signs; of gradients that are zero, too
            assert error < 1e-9 * expected[name].abs().max() + 1e-14, (name, state is None)


@pytest.mark.parametrize("length", [1, 7, 65])
@pytest.mark.parametrize("name", CASES)
def test_a_mixer_is_its_papers_equations(name, length):
    torch.manual_seed(0)
    config, equations = CASES[name]
    assert_equal(config.build(PLACE).double(), equations, length)


def test_mamba2_has_mamba_ssms_parameters():
    mixer = mixers.Mamba2Config(d_state=128, head_dim=64, n_groups=2).build(mixers.Place(256, 256, 0, 1))
    inner, states, heads = 512, 2 * 2 * 128, 8
    assert {name: tuple(value.shape) for name, value in mixer.state_dict().items()} == {
        "dt_bias": (heads,), "A_log": (heads,), "D": (heads,), "norm.weight": (inner,),
        "in_proj.weight": (2 * inner + states + heads, 256),
        "conv1d.weight": (inner + states, 1, 4), "conv1d.bias": (inner + states,),
        "out_proj.weight": (256, inner),
    }  # fmt: skip


def test_mamba2s_kernel_gets_bf16_under_autocast_and_its_decays_in_fp32(monkeypatch):
    seen = []

    def spy(*inputs, **options):
        seen.extend(tensor.dtype for tensor in inputs[:4])
        return ssd(*inputs, **options)

    monkeypatch.setattr(mamba2, "ssd", spy)
    torch.manual_seed(0)
    mixer, x = mixers.Mamba2Config(d_state=8, head_dim=8).build(PLACE), torch.randn(2, 70, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x, None)[0]
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
    exact = mixer(x, None)[0]
    assert (y.float() - exact).abs().max() < 0.03 * exact.abs().max()  # eight bits, a few times


def test_mamba2_begins_as_published():
    torch.manual_seed(0)
    config = mixers.Mamba2Config(head_dim=1, d_state=1, dt_min=1e-3, dt_max=0.1, dt_init_floor=1e-2)
    mixer = config.build(mixers.Place(2000, 2000, 0, 1))
    steps, rates = softplus(mixer.dt_bias.detach()), mixer.A_log.detach().exp()
    # log-uniform in [0.001, 0.1], of which half is below 0.01 and is raised to it
    assert steps.min() == pytest.approx(1e-2, rel=1e-4) and 0.095 < steps.max() < 0.1001
    assert 0.46 < (steps < 1.001e-2).float().mean() < 0.54
    assert 1 <= rates.min() < 1.05 and 15.95 < rates.max() <= 16.001
    assert abs(rates.mean() - 8.5) < 0.3 and (mixer.D == 1).all() and (mixer.norm.weight == 1).all()


def test_mamba3_has_mamba_ssms_parameters():
    mixer = mixers.Mamba3Config(d_state=128, head_dim=64, n_groups=2).build(mixers.Place(256, 256, 0, 1))
    inner, states, heads = 512, 128, 8
    assert {name: tuple(value.shape) for name, value in mixer.state_dict().items()} == {
        "dt_bias": (heads,), "B_bias": (heads, 1, states), "C_bias": (heads, 1, states), "D": (heads,),
        "in_proj.weight": (2 * inner + 2 * 2 * states + 3 * heads + 32, 256), "B_norm.weight": (states,),
        "C_norm.weight": (states,), "out_proj.weight": (256, inner),
    }  # fmt: skip


def test_mamba3s_angles_stay_exact_in_a_long_context_and_begin_anew_in_a_document():
    step, start = torch.tensor(0.3), torch.zeros(1, 100_000, dtype=torch.bool)
    start[0, 60_000] = True
    count = torch.arange(1, 100_001, dtype=torch.float64)
    count[60_000:] -= 60_000
    first = torch.tensor([[[1.5]]])
    angles = summed_angles(step.expand(1, 100_000, 1, 1), first, start).flatten()
    expected = count * step.double()
    expected[:60_000] += 1.5
    # the rounding of a result to fp32: sums in fp32 would be off by 1e-2
    assert angles.dtype == torch.float32 and angles.min() >= 0 and angles.max() < 6.2832
    assert ((angles - expected).sin().abs() < 5e-7).all()


@pytest.mark.parametrize("length", [1, 7, 65])
def test_rwkvs_channel_mixing_is_its_papers_equations(length):
    torch.manual_seed(0)
    assert_equal(build_mlp("rwkv", 12, PLACE).double(), naive.channel_mixing, length)


def test_wkv_neither_overflows_nor_underflows():
    """Keys hundreds apart, of which exp is no number of fp32: the mean is the largest one's value."""
    k = torch.tensor([400.0, -300.0, 500.0, -500.0, 0.0]).view(1, 5, 1).repeat(1, 40, 1).requires_grad_()
    v = torch.randn(1, 200, 1, generator=torch.Generator().manual_seed(0))
    w, u = torch.tensor([20.0]), torch.tensor([0.0])
    y, sums = wkv(w, u, k, v, None)
    y.sum().backward()
    assert y.isfinite().all() and sums.isfinite().all() and k.grad.isfinite().all()
    # The last 500 has decayed to no less than 420, and the one before it to 400.
    last = torch.tensor([t - (t - 2) % 5 for t in range(2, 200)])
    assert torch.allclose(y[0, 2:, 0], v[0, last, 0])


def test_wkv_starts_a_document_whatever_the_keys_were_before():
    torch.manual_seed(0)
    k, v = torch.randn(1, 90, 3), torch.randn(1, 90, 3)
    k[:, 20:30] += 1000.0
    w, u, state = torch.tensor([0.01, 1.0, 9.0]), torch.zeros(3), torch.tensor([1.0, 2.0, 3000.0])
    start = torch.zeros(1, 90, dtype=torch.bool)
    start[0, [20, 30, 89]] = True
    packed, last = wkv(w, u, k, v, state[:, None].expand(3, 3)[None], start)
    for first, end in ((20, 30), (30, 89), (89, 90)):
        alone, sums = wkv(w, u, k[:, first:end], v[:, first:end], None)
        # fp32 in another order, and exponents relative to another largest
        assert torch.allclose(packed[:, first:end], alone, atol=2e-5), first
    assert torch.allclose(last, sums, atol=2e-4)  # an exponent is rounded at the size of t w, 810


@pytest.mark.parametrize("states", [2, 8, 64])
def test_hippo_is_normal_plus_low_rank(states):
    """Both of each pair together are a matrix similar to HiPPO's, with the same response to an input."""
    n = torch.arange(states, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    A = -torch.tril(root[:, None] * root, -1) - torch.diag(n + 1)
    L, P, B = (torch.from_numpy(each) for each in normal_and_low_rank(states))
    L, P, B = (torch.cat([each, each.conj()]) for each in (L, P, B))
    similar = torch.diag(L) - P[:, None] * P.conj()
    one = torch.eye(states, dtype=torch.complex128)
    for point in (0.3 + 1j, 2.0 - 3j, 40j):
        # what no change of coordinates alters: B* (s - A)^-1 B
        theirs = root.to(one) @ torch.linalg.solve(point * one - A, root.to(one))
        ours = B.conj() @ torch.linalg.solve(point * one - similar, B)
        assert abs(ours - theirs) < 1e-9 * abs(theirs)


@pytest.mark.parametrize("length", [1, 2, 7, 65, 100])
def test_a_long_convolution_and_its_gradients(length):
    torch.manual_seed(0)
    u = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, length, dtype=torch.float64, requires_grad=True)
    shifts = torch.arange(length)[:, None] - torch.arange(length)
    toeplitz = kernel[:, shifts.clamp(min=0)] * (shifts >= 0)
    expected = torch.einsum("dts,bsd->btd", toeplitz, u)
    actual = long_convolution(u, kernel)
    weights = torch.randn_like(actual)
    assert torch.allclose(actual, expected, atol=1e-12)
    gradients = [torch.autograd.grad((y * weights).sum(), (u, kernel)) for y in (actual, expected)]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*gradients, strict=True))
