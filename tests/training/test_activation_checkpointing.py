"""Activation checkpointing keeps less for backward and changes nothing else."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from mambabyte.models import (
    CNNConfig,
    GatedS4DConfig,
    LSTMConfig,
    MambaByteConfig,
    MegaByteConfig,
    PerceiverARConfig,
    SpaceByteConfig,
    TransformerConfig,
)
from mambabyte.training.activation_checkpointing import checkpoint_activations
from tests.models.every_model import MODELS as EVERY_MODEL

MODELS = {
    "mambabyte": MambaByteConfig(d_model=32, n_layer=3, d_state=4),
    "transformer": TransformerConfig(d_model=32, n_layer=3, n_head=2),
    "megabyte": MegaByteConfig(max_length=64, d_model=32, n_head=2, local_d_model=16, local_n_head=2),
    "perceiver_ar": PerceiverARConfig(n_latents=8, d_model=32, n_layer=3, n_head=2),
    "spacebyte": SpaceByteConfig(max_length=64, d_model=32, n_head=2, local_d_model=16, local_n_head=1),
    "gated_s4d": GatedS4DConfig(d_model=32, n_layer=3, d_state=8),
    "hnet": EVERY_MODEL["hnet-2-stages"],
    "lstm": LSTMConfig(d_model=32, n_layer=2),
    "cnn": CNNConfig(d_model=32, n_layer=3, dilation_cycle=2),
}


@pytest.fixture(params=MODELS)
def models(request):
    """A model and a copy of it that recomputes its blocks."""
    torch.manual_seed(0)
    model = MODELS[request.param].build()
    with torch.no_grad():
        for parameter in model.parameters():  # a head initialized to zero passes no gradients on
            parameter += 0.02 * torch.randn_like(parameter)
    recomputing = copy.deepcopy(model)
    checkpoint_activations(recomputing)
    return model, recomputing


def gradients(model, documents, autocast=False):
    """The gradients and the bytes kept for backward; `documents`: packed, from a given initial state."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 256, (2, 33), generator=generator)
    before, marks = None, None
    if documents:
        _, before = model.prefill(text[:, :9].flip(1), model.initial_state(2))
        marks = torch.zeros(2, 32, dtype=torch.bool)
        marks[0, 0] = marks[0, 13] = marks[1, 20] = True
    kept = 0

    def keep(tensor):
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, autocast):
        logits = model(text[:, :-1], before, marks)
        loss = cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten())
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, kept


@pytest.mark.parametrize("documents", [False, True], ids=["window", "packed-after-a-state"])
def test_the_gradients_are_the_same_bits(models, documents):
    (expected, kept), (found, kept_recomputing) = (gradients(model, documents) for model in models)
    assert kept_recomputing < kept  # else nothing was recomputed
    for name, gradient in expected.items():
        # the same operations on the same numbers in the same order
        assert torch.equal(gradient, found[name]), name


def test_under_autocast_too(models):
    (expected, _), (found, _) = (gradients(model, documents=True, autocast=True) for model in models)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name


def test_a_model_that_recomputes_has_the_same_names_and_generates(models):
    model, recomputing = models
    assert model.state_dict().keys() == recomputing.state_dict().keys()
    byte = torch.tensor([65, 66])
    with torch.no_grad():
        expected, found = (each.step(byte, each.initial_state(2))[0] for each in models)
    assert torch.equal(expected, found)
