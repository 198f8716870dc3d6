"""peft's adapters in our models: honoured on every road to the logits, trained alone, and merged exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from mambabyte.errors import UserError
from mambabyte.models import GatedS4DConfig, LSTMConfig, MambaByte, MambaByteConfig, TransformerConfig
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.models.lora import add_adapters, merged, weight_of
from mambabyte.training.activation_checkpointing import checkpoint_activations
from mambabyte.training.planning.memory_estimate import make_fake
from tests.models.layer_traffic import as_on_cuda
from tests.ops.naive import relative_error

peft = pytest.importorskip("peft")

PROJECTIONS = ["in_proj", "x_proj", "dt_proj", "out_proj"]
SMALL = MambaByteConfig(d_model=21, n_layer=2, d_state=5, dt_rank=3)
TOLERANCE = 5e-6  # relative to the largest logit: fp32 sums of some tens of terms through two layers
TEXT = torch.tensor([list(b"adapters"), list(b"of peft!")])


def build(targets: list[str], config: MambaByteConfig = SMALL, dropout: float = 0.0) -> MambaByte:
    """A model with adapters that change it: B is no longer zero."""
    torch.manual_seed(0)
    model = config.build()
    add_adapters(model, LoraSettings(rank=2, alpha=6.0, dropout=dropout, targets=targets))
    for parameter in adapters(model).values():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}


def without_adapters(model: MambaByte) -> MambaByte:
    """A model of our own layers with the merged weights, built by `merged`."""
    ranks = {p.shape[0] for name, p in adapters(model).items() if ".lora_A." in name}
    whole = merged(model.state_dict(), LoraSettings(rank=ranks.pop(), alpha=6.0))
    plain = model.config.build()
    plain.load_state_dict(whole)
    return plain.eval()


def base_of(model: MambaByte) -> MambaByte:
    plain, weights = model.config.build(), model.state_dict()
    own = {name: tensor for name, tensor in weights.items() if ".lora_" not in name}
    plain.load_state_dict({name.replace(".base_layer.", "."): tensor for name, tensor in own.items()})
    return plain.eval()


@pytest.fixture(params=["cpu", "reference"])
def backend(request, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MAMBABYTE_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("target", PROJECTIONS)
def test_an_adapter_of_one_layer_counts_on_every_road(target: str, backend: str) -> None:
    model = build([target])
    exact = without_adapters(model).double()
    with torch.no_grad():
        expected = exact(TEXT)
        assert relative_error(base_of(model)(TEXT), expected) > 50 * TOLERANCE  # what it would be without
        _, state = model.prefill(TEXT[:, :-1])
        found = {
            "forward": model(TEXT),
            "prefill": model.prefill(TEXT)[0],
            "step": model.step(TEXT[:, -1], state)[0].unsqueeze(1),
        }
        if backend == "cpu":
            found["stepper"] = model.stepper(state)(TEXT[:, -1]).unsqueeze(1)
    for road, logits in found.items():
        assert relative_error(logits, expected[:, -logits.shape[1] :]) < TOLERANCE, road


@pytest.mark.parametrize("target", PROJECTIONS)
def test_adapters_alone_get_gradients_and_these_are_those_of_the_merged_weight(target, backend) -> None:
    model = build([target])
    exact = without_adapters(model).double()
    for each in (model, exact):
        cross_entropy(each(TEXT[:, :-1]).flatten(0, 1), TEXT[:, 1:].flatten()).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == adapters(model).keys()
    for layer, block in enumerate(model.backbone.layers):
        of = getattr(block.mixer, target)
        A, B = (each["default"].weight for each in (of.lora_A, of.lora_B))
        gradient = getattr(exact.backbone.layers[layer].mixer, target).weight.grad  # of W + 3 B A
        assert relative_error(A.grad, 3 * B.double().T @ gradient) < 1e-4  # sums that cancel
        assert relative_error(B.grad, 3 * gradient @ A.double().T) < 1e-4


def test_at_first_they_change_nothing() -> None:
    torch.manual_seed(0)
    model = SMALL.build()
    expected = model(TEXT)
    add_adapters(model, LoraSettings(rank=2, alpha=4))
    assert torch.equal(model(TEXT), expected)


def on_fake_cuda(targets: list[str], **settings: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients with the layers' CUDA road: weights rounded at once, tensors computed again."""
    model = build(targets)
    with as_on_cuda(**settings), torch.autocast("cpu", torch.bfloat16):
        logits = model(TEXT)
        cross_entropy(logits.float().flatten(0, 1), TEXT.flatten()).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("target", PROJECTIONS)
def test_weights_rounded_at_once_and_recomputation_change_no_adapter(target: str) -> None:
    model = build([target])
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(TEXT)
        cross_entropy(expected.float().flatten(0, 1), TEXT.flatten()).backward()
    logits, gradients = on_fake_cuda([target], scan="cpu", conv="cpu", norm="cpu")
    assert torch.equal(logits, expected)
    assert gradients.keys() == adapters(model).keys()
    for name, parameter in adapters(model).items():
        # in bf16, whose products the two roads add in another order
        assert relative_error(gradients[name], parameter.grad) < 2e-2, name


def test_on_the_triton_kernels_the_adapters_alone_get_gradients() -> None:
    """On fake tensors, which have shapes and no data; the kernels' own gradients are tested in tests/ops."""
    pytest.importorskip("triton")
    model = build(PROJECTIONS).train()
    with as_on_cuda(scan="triton", conv="triton", norm="triton"), FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(model, torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model(torch.zeros(2, 9, dtype=torch.uint8)).float().flatten(0, 1),
                                 torch.zeros(18, dtype=torch.int64))  # fmt: skip
        loss.backward()
    shapes = {name: p.grad.shape for name, p in model.named_parameters() if p.grad is not None}
    assert shapes == {name: p.shape for name, p in adapters(model).items()}


def test_the_step_takes_no_weights_that_it_kept_before_the_adapters_came() -> None:
    torch.manual_seed(0)
    model = SMALL.build().eval()
    states = model.initial_state(2)
    with torch.no_grad():
        before, _ = model.step(TEXT[:, 0], states)  # the kernel's weights are kept
        add_adapters(model, LoraSettings(rank=2, alpha=6.0))
        for parameter in adapters(model).values():
            nn.init.normal_(parameter, std=0.3)
        for _ in range(2):
            adapted, _ = model.step(TEXT[:, 0], states)
            assert relative_error(adapted, without_adapters(model)(TEXT[:, :1])[:, 0]) < TOLERANCE
        layers = [module for module in model.modules() if hasattr(module, "get_base_layer")]
        for layer in layers:
            layer.enable_adapters(False)
        assert relative_error(model.step(TEXT[:, 0], states)[0], before) < TOLERANCE
        for layer in layers:
            layer.enable_adapters(True)
            layer.merge()
        assert relative_error(model.step(TEXT[:, 0], states)[0], adapted) < TOLERANCE
        for layer in layers:
            layer.unmerge()
        assert relative_error(model.step(TEXT[:, 0], states)[0], adapted) < TOLERANCE


def test_every_weight_that_the_step_kernels_read_has_its_adapter() -> None:
    """`TritonStep` and `PreparedMamba` take these; tests/ops/step compares their results with the model."""
    config = MambaByteConfig(d_model=12, n_layer=1, ngram=3, ngram_buckets=7, ngram_width=4)
    model = build([*PROJECTIONS, "lm_head", "projection"], config)
    expected, found = without_adapters(model), model
    pairs = zip(expected.step_weights().blocks, found.step_weights().blocks, strict=True)
    for theirs, ours in pairs:
        for name, tensor in theirs._asdict().items():
            assert torch.equal(getattr(ours, name), tensor), name
    assert torch.equal(found.step_weights().head, expected.step_weights().head)
    assert torch.equal(found._embedding_weights().projection, expected._embedding_weights().projection)


def test_other_kinds_of_peft_are_honoured_too() -> None:
    """DoRA scales the rows of W as well: a stepper takes what peft itself merges."""
    torch.manual_seed(0)
    model = SMALL.build().eval()
    # It takes a layer's bias off its output, which dt_proj has not added.
    targets = [name for name in PROJECTIONS if name != "dt_proj"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, use_dora=True, target_modules=targets), model)
    for parameter in adapters(model).values():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        _, state = model.prefill(TEXT[:, :-1])
        assert relative_error(model.stepper(state)(TEXT[:, -1]), model(TEXT)[:, -1]) < TOLERANCE
        assert relative_error(model.step(TEXT[:, -1], state)[0], model(TEXT)[:, -1]) < TOLERANCE


def test_merging_is_pefts_to_the_bit() -> None:
    model = build(PROJECTIONS)
    whole = merged(model.state_dict(), LoraSettings(rank=2, alpha=6.0))
    for name, module in model.named_modules():
        if hasattr(module, "get_base_layer"):
            assert torch.equal(whole[f"{name}.weight"], weight_of(module)), name
            assert not torch.equal(whole[f"{name}.weight"], module.weight), name


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_blocks_computed_again_draw_the_same_dropout(dropout: float) -> None:
    model = build(PROJECTIONS, dropout=dropout).train()
    recomputing = copy.deepcopy(model)
    checkpoint_activations(recomputing)
    for each in (model, recomputing):
        torch.manual_seed(1)
        cross_entropy(each(TEXT[:, :-1]).flatten(0, 1), TEXT[:, 1:].flatten()).backward()
    expected, found = adapters(model), adapters(recomputing)
    assert all(torch.equal(found[name].grad, parameter.grad) for name, parameter in expected.items())


OTHERS = {
    "transformer": (TransformerConfig(d_model=16, n_layer=1, n_head=2), ["qkv", "out", "up", "down"]),
    "gated_s4d": (GatedS4DConfig(d_model=16, n_layer=1, d_state=4), ["in_proj", "mix", "out_proj"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_take_the_names_that_they_have(name: str) -> None:
    config, targets = OTHERS[name]
    model = build(targets, config)
    assert relative_error(model(TEXT), without_adapters(model)(TEXT)) < TOLERANCE
    with torch.no_grad():
        found, state = [], model.initial_state(2)
        for byte in TEXT.T:
            logits, state = model.step(byte, state)
            found.append(logits)
        # the recurrence instead of the convolution
        assert relative_error(torch.stack(found, 1), model(TEXT)) < 1e-4


REFUSED = {
    "another name": (SMALL, ["qkv"], "no linear layer 'qkv'; set lora.targets to some of dt_proj, in_"),
    "no linear layer": (SMALL, ["conv1d"], "no linear layer 'conv1d'"),
    "tied": (MambaByteConfig(d_model=8, n_layer=1, tie_embeddings=True), ["lm_head"], "no linear layer"),
    "one of several": (TransformerConfig(d_model=16, n_layer=1, n_head=2), ["qkv", "in_proj"], "'in_proj'"),
    "none at all": (LSTMConfig(d_model=8, n_layer=1), ["in_proj"], "no linear layer 'in_proj'"),
}


@pytest.mark.parametrize(
    ("config", "targets", "message"), REFUSED.values(), ids=[name.replace(" ", "_") for name in REFUSED]
)
def test_layers_that_are_not_there_are_refused(config, targets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_adapters(config.build(), LoraSettings(rank=2, alpha=4, targets=targets))


def test_without_peft_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'mambabyte\[lora\]'"):
        add_adapters(SMALL.build(), LoraSettings(rank=2, alpha=4))


_LAYER = "backbone.layers.0.mixer.in_proj."
_A, _B = _LAYER + "lora_A.default.weight", _LAYER + "lora_B.default.weight"
_HUGE = torch.zeros(1).expand(1 << 40, 2)
HOSTILE = {
    "no A": {_A: None},
    "another rank": {_A: torch.zeros(3, 21), _B: torch.zeros(84, 3)},
    "more memory than there is": {_B: _HUGE, _LAYER + "base_layer.weight": _HUGE.expand(1 << 40, 2)},
    "of no layer": {"backbone.nothing.lora_A.default.weight": torch.zeros(2, 2)},
    "integers": {_A: torch.zeros(2, 21, dtype=torch.int64)},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=[name.replace(" ", "_") for name in HOSTILE])
def test_adapters_that_do_not_fit_are_refused_before_anything_is_allocated(changes) -> None:
    weights = {**build(PROJECTIONS).state_dict(), **changes}
    with pytest.raises(ValueError, match=r"adapter|missing|memory"):
        merged({name: tensor for name, tensor in weights.items() if tensor is not None}, LoraSettings(2, 6))
