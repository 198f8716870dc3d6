"""The weights that are kept from step to step are never those of before."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mambabyte.models import MambaByteConfig
from mambabyte.ops.step import mamba_step


def build(seed=0):
    torch.manual_seed(seed)
    return MambaByteConfig(d_model=24, n_layer=2, d_state=5).build().eval()


@torch.no_grad()
def logits(model):
    """After two steps, the second of which has kept weights."""
    state = model.initial_state(1)
    for byte in (65, 66):
        out, state = model.step(torch.tensor([byte]), state)
    return out


def fresh(model):
    """The logits of another model with this one's weights."""
    other = MambaByteConfig(**vars(model.config)).build().eval()
    other.load_state_dict(model.state_dict())
    return logits(other)


def optimizer_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randint(0, 256, (1, 9))).square().mean().backward()
    optimizer.step()


@torch.no_grad()
def edit_in_place(model):
    for parameter in model.parameters():
        parameter.add_(0.1)


def edit_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def other_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


@torch.no_grad()
def other_parameters(model):
    mixer = model.backbone.layers[1].mixer
    mixer.A_log = nn.Parameter(mixer.A_log + 0.5)
    mixer.conv1d.weight = nn.Parameter(-mixer.conv1d.weight)
    mixer.dt_proj.weight = nn.Parameter(-mixer.dt_proj.weight)


def other_layer(model):
    model.backbone.layers[0] = build(seed=1).backbone.layers[0]


def other_projection(model):
    model.backbone.layers[0].mixer.out_proj = build(seed=1).backbone.layers[1].mixer.out_proj


def load(model):
    model.load_state_dict(build(seed=1).state_dict())


def load_assigned(model):
    model.load_state_dict(build(seed=1).state_dict(), assign=True)


def round_trip(model):
    model.bfloat16().float()


def not_contiguous(model):
    weight = model.backbone.layers[0].mixer.in_proj.weight
    weight.data = weight.data.t().contiguous().t() + 1.0


CHANGES = (
    optimizer_step, edit_in_place, edit_data, other_data, other_parameters, other_layer, other_projection,
    load, load_assigned, round_trip, not_contiguous,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_a_changed_model_steps_with_its_new_weights(change):
    model = build()
    before = logits(model)
    change(model)
    after = logits(model)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh(model))
    change(model)
    assert torch.equal(logits(model), fresh(model))


def test_inference_tensors_that_are_edited_are_noticed():
    with torch.inference_mode():
        model = build()
        before = logits(model)
        for parameter in model.parameters():
            parameter.add_(0.1)
        after = logits(model)
        assert not torch.equal(before, after) and torch.equal(after, fresh(model))


def test_a_weight_that_is_computed_is_computed_again():
    model = build()
    nn.utils.parametrize.register_parametrization(model.lm_head, "weight", nn.Tanh())
    before = logits(model)
    with torch.no_grad():
        model.lm_head.parametrizations.weight.original.mul_(2)
    expected = build()
    with torch.no_grad():
        expected.lm_head.weight.mul_(2).tanh_()
    assert torch.equal(logits(model), logits(expected)) and not torch.equal(logits(model), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_has_weights_of_its_own(duplicate):
    model = build()
    before = logits(model)
    other = duplicate(model)
    assert torch.equal(logits(other), before)
    edit_in_place(other)
    assert torch.equal(logits(model), before) and torch.equal(logits(other), fresh(other))


def test_weights_are_prepared_once():
    model = build()
    logits(model)
    first = model._kept_weights.prepare(model, model.step_weights)
    optimizer_step(model)
    assert model._kept_weights.prepare(model, model.step_weights) is first


@torch.no_grad()
def test_an_embedding_of_another_width_is_refused():
    model = build()
    weights = model._kept_weights.prepare(model, model.step_weights)
    with pytest.raises(ValueError, match=r"shape \(batch, 24\), not \(1, 23\)"):
        mamba_step(torch.zeros(1, 23), model.initial_state(1), weights)
