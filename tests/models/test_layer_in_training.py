"""What a layer of MambaByte launches, moves and keeps in training, and its gradients."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mambabyte.models import MambaByteConfig, mamba, projection
from mambabyte.ops import recomputation, use_backend
from mambabyte.training.activation_checkpointing import checkpoint_activations
from tests.models.layer_traffic import MAMBABYTE_353M, as_on_cuda, of_a_layer

SMALL = MambaByteConfig(d_model=24, n_layer=3, d_state=5)


@pytest.fixture
def as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models take the ways on the CPU that they take on CUDA."""
    monkeypatch.setattr(recomputation, "DEVICES", {"cpu"})


def built() -> nn.Module:
    torch.manual_seed(0)
    return SMALL.build()


def gradients(model: nn.Module, autocast: bool = False, after_a_state: bool = False) -> dict[str, Tensor]:
    """Of a packed window, in the model's dtype or under autocast."""
    text = torch.randint(0, 256, (2, 42), generator=torch.Generator().manual_seed(1))
    marks = torch.zeros(2, 41, dtype=torch.bool)
    marks[0, 0] = marks[0, 13] = marks[1, 20] = True
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        state = model.prefill(text[:, :9].flip(1))[1] if after_a_state else None
        logits = model(text[:, :-1], state, marks)
        loss = cross_entropy(logits.to(torch.float64).flatten(0, 1), text[:, 1:].flatten())
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def kept_again(x: Tensor, *_: object) -> Tensor:
    """In the place of `recomputable`: backward finds what forward computed."""
    return x


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("after_a_state", [False, True], ids=["window", "after-a-state"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_what_backward_computes_again_has_the_same_bits(
    as_cuda, autocast, after_a_state, monkeypatch
) -> None:
    found = gradients(built(), autocast, after_a_state)
    for module in (mamba, projection):
        monkeypatch.setattr(module, "recomputable", kept_again)
    assert_same_bits(found, gradients(built(), autocast, after_a_state))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_ways_of_cuda_give_the_same_gradients(backend, monkeypatch) -> None:
    """In fp32 to rounding, in another order; in bf16, whose products cannot be compared so, below."""
    with use_backend(backend):
        expected = gradients(built())
        monkeypatch.setattr(recomputation, "DEVICES", {"cpu"})
        found = gradients(built())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_float64_gradients_are_those_of_plain_pytorch(monkeypatch) -> None:
    expected = gradients(built().double())
    monkeypatch.setattr(recomputation, "DEVICES", {"cpu"})
    for name, gradient in gradients(built().double()).items():
        # the order of sums alone differs
        assert torch.allclose(gradient, expected[name], rtol=1e-11, atol=1e-14), name


def test_under_autocast_gradients_are_as_near_to_fp32_as_pytorchs(monkeypatch) -> None:
    exact = gradients(built())
    plain = gradients(built(), autocast=True)
    monkeypatch.setattr(recomputation, "DEVICES", {"cpu"})
    found = gradients(built(), autocast=True)
    for name, gradient in exact.items():
        largest = gradient.abs().max()
        error, error_of_plain = ((x[name] - gradient).abs().max() / largest for x in (found, plain))
        assert error <= 1.5 * error_of_plain + 0.01, name  # eight bits


def test_with_checkpointed_blocks_too(as_cuda) -> None:
    model = built()
    recomputing = copy.deepcopy(model)
    checkpoint_activations(recomputing)
    for autocast in (False, True):
        assert_same_bits(gradients(recomputing, autocast), gradients(model, autocast))


def test_backward_twice_over_one_graph(as_cuda) -> None:
    model, bytes = built(), torch.randint(0, 256, (1, 33))
    loss = model(bytes).square().mean()
    loss.backward(retain_graph=True)
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    (only,) = torch.autograd.grad(loss, [model.backbone.layers[1].mixer.x_proj.weight], retain_graph=True)
    assert torch.equal(only, once["backbone.layers.1.mixer.x_proj.weight"])
    model.zero_grad()
    loss.backward()
    assert_same_bits({name: parameter.grad for name, parameter in model.named_parameters()}, once)


class Adapter(nn.Module):
    """A low-rank adapter (LoRA, arXiv 2106.09685) around a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_adapters_of_every_projection_take_part(monkeypatch) -> None:
    """With the base frozen, as they are trained."""
    results = []
    for devices in (set(), {"cpu"}):
        monkeypatch.setattr(recomputation, "DEVICES", devices)
        model = built().requires_grad_(False)
        for layer in model.backbone.layers:
            for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
                setattr(layer.mixer, name, Adapter(getattr(layer.mixer, name)))
        bytes = torch.randint(0, 256, (2, 33), generator=torch.Generator().manual_seed(1))
        model(bytes).square().mean().backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 3 * 4 * 2 and all(grad.abs().max() > 0 for grad in trained.values())
        results.append(trained)
    for name, gradient in results[0].items():
        assert (results[1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_hooks_of_projections_see_and_change_what_passes(as_cuda, name) -> None:
    model, bytes = built(), torch.randint(0, 256, (2, 17))
    plain = model(bytes)
    module, seen = getattr(model.backbone.layers[0].mixer, name), []
    handle = module.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].shape, out.shape)))
    assert torch.equal(model(bytes), plain)
    handle.remove()
    assert seen == [((2, 17, module.in_features), (2, 17, module.out_features))]
    module.register_forward_hook(lambda _, inputs, out: out.mul_(2.0))
    found = model(bytes)
    found.square().mean().backward()
    with torch.no_grad():
        doubled = copy.deepcopy(model)
        doubled_module = getattr(doubled.backbone.layers[0].mixer, name)
        doubled_module._forward_hooks.clear()
        doubled_module.weight.mul_(2.0)
    expected = doubled(bytes)
    # multiplication by two is exact
    assert torch.equal(found, expected)
    doubled.zero_grad()
    expected.square().mean().backward()
    assert torch.allclose(module.weight.grad, 2 * doubled_module.weight.grad, rtol=1e-5, atol=1e-9)


def test_a_change_in_place_between_forward_and_backward_is_refused(as_cuda) -> None:
    model = built()
    loss = model(torch.randint(0, 256, (1, 17))).square().mean()
    with torch.no_grad():
        model.backbone.layers[0].mixer.conv1d.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_outlives_its_graph(as_cuda) -> None:
    model, kept = built(), []
    model.backbone.layers[0].mixer.x_proj.register_forward_hook(
        lambda _, inputs, out: kept.extend(map(weakref.ref, (inputs[0], out)))
    )
    gc.disable()  # cycles would not be seen
    try:
        model(torch.randint(0, 256, (1, 17))).square().mean().backward()
        assert len(kept) == 2 and all(each() is None for each in kept)
    finally:
        gc.enable()


def test_a_layer_launches_moves_and_keeps_little() -> None:
    """The 353M model's, at the paper's recipe: windows of 8,192 bytes, four at a time."""
    batch, length = 4, 8192
    with as_on_cuda(scan="cuda", conv="triton", norm="triton"):
        layer = of_a_layer(MAMBABYTE_353M, batch, length)
    elements = batch * length * MAMBABYTE_353M.d_inner
    assert layer.total_kernels <= 24, layer.kernels
    assert layer.total_bytes <= 130 * elements, layer.bytes
    assert layer.kept <= 12 * elements
