"""Each model against its paper's equations, written out plainly on the same weights; and what a user gets
wrong."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from mambabyte.errors import UserError
from mambabyte.models import (
    CNNConfig,
    GatedS4DConfig,
    LSTMConfig,
    MegaByteConfig,
    PerceiverARConfig,
    TransformerConfig,
)
from mambabyte.models.layers import apply_rotary, causal_attention, rotary_factors
from mambabyte.models.mixers.s4d import S4D

MEGABYTE = MegaByteConfig(
    patch_size=4,
    max_length=64,
    d_model=32,
    n_head=2,
    local_d_model=16,
    local_n_head=2,
    initializer_std=0.2,
    embedding_std=0.2,
)


def random_bytes(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_megabyte_is_the_papers_factorisation():
    """Section 2 of the paper on whole patches: its output at place t + 1 is our logits at t."""
    torch.manual_seed(0)
    model, patch = MEGABYTE.build(), 4
    bytes = random_bytes(1, 20)
    embedded = model.global_embedding(bytes) + model.global_positions.weight[:20]
    patches = embedded.view(1, 5, 32)
    global_input = torch.cat([model.global_pad.weight.view(1, 1, 32), patches[:, :-1]], 1)
    global_output = model.global_stack(global_input)[0]
    outputs = []
    for k in range(5):
        slots = []
        for p in range(patch):
            piece = global_output[:, k, 8 * p : 8 * (p + 1)] @ model.to_local.weight.T
            before = model.local_pad.weight if p == 0 else model.local_embedding(bytes[:, patch * k + p - 1])
            slots.append(piece + before + model.local_positions.weight[p])
        local_output = model.local_stack(torch.stack(slots, 1))[0]
        outputs.append(local_output @ model.local_embedding.weight.T)
    paper = torch.cat(outputs, 1)
    # fp32 in another order, logits of order 1
    assert torch.allclose(model(bytes)[:, :-1], paper[:, 1:], atol=1e-5)


def test_megabyte_trains_the_first_byte_of_a_patch_from_the_patch_before():
    torch.manual_seed(0)
    model = MEGABYTE.build()
    bytes = random_bytes(1, 9)
    cross_entropy(model(bytes)[0, 7:8], bytes[0, 8:9]).backward()  # byte 8 begins the third patch
    assert model.local_pad.weight.grad.abs().sum() > 0
    touched = model.global_embedding.weight.grad.abs().sum(-1) > 0
    assert touched[bytes[0, :8]].all() and not touched[bytes[0, 8]]


@torch.no_grad()
def test_perceiver_ar_ends_a_window_as_the_paper_does():
    """One cross-attention of the last M positions over all, and a stack among them."""
    torch.manual_seed(0)
    model = PerceiverARConfig(n_latents=6, d_model=32, n_layer=3, n_head=2).build()
    torch.nn.init.normal_(model.lm_head.weight)
    bytes, cross, latents = random_bytes(2, 18), model.cross, 6
    x = model.embedding(bytes)
    rotary = rotary_factors(torch.arange(18), model.config.rotary_channels, model.config.rope_base)
    residual = cross.latents(x[:, -latents:])
    q = cross.query(cross.latent_norm(residual, None)[0]).view(2, latents, 2, 16)
    k, v = (t.view(2, 18, 2, 16) for t in cross.key_value(cross.input_norm(x, None)[0]).chunk(2, -1))
    attended = causal_attention(apply_rotary(q, rotary[-latents:]), apply_rotary(k, rotary), v)
    normed, residual = cross.feed_forward_norm(residual, cross.out(attended))
    out = model.stack(residual + cross.feed_forward(normed), None, rotary[-latents:])[0]
    # fp32 in another order, logits of order 10
    assert torch.allclose(model(bytes)[:, -latents:], model.lm_head(out), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 63, 200])
def test_s4d_is_its_recurrence(length):
    torch.manual_seed(0)
    layer = S4D(5, 8, 1e-3, 1e-1).double()
    u = torch.randn(2, length, 5, dtype=torch.float64)
    A = torch.complex(-layer.log_decay.exp(), layer.frequency)
    step = layer.log_step.exp()[:, None]
    h = torch.zeros(2, 5, 4, dtype=torch.complex128)
    outputs = []
    for t in range(length):
        h = (step * A).exp() * h + ((step * A).exp() - 1) / A * u[:, t, :, None]
        outputs.append(2 * (torch.view_as_complex(layer.C) * h).sum(-1).real + layer.D * u[:, t])
    expected = torch.stack(outputs, 1)
    assert torch.allclose(layer(u, None)[0], expected, atol=1e-9)
    y, (state,) = layer(u, layer.initial_state(2))
    assert torch.allclose(y, expected, atol=1e-9)
    assert torch.allclose(torch.view_as_complex(state), h, atol=1e-9)


def test_s4d_begins_as_published():
    torch.manual_seed(0)
    layer = S4D(64, 8, 1e-3, 1e-1)
    assert torch.allclose(layer.log_decay.exp(), torch.tensor(0.5))
    assert torch.allclose(layer.frequency[7], math.pi * torch.arange(4.0))
    step = layer.log_step.exp()
    assert step.min() >= 0.999e-3 and step.max() <= 0.1001 and step.max() / step.min() > 10
    assert all(parameter._no_weight_decay for parameter in layer.parameters())


def test_cnn_sees_its_receptive_field_and_no_more():
    torch.manual_seed(0)
    model = CNNConfig(d_model=8, n_layer=3, kernel_size=2, dilation_cycle=3).build()
    assert model.config.receptive_field == 8
    bytes = random_bytes(1, 12)
    changed = bytes.clone()
    changed[0, 3] ^= 1
    differs = (model(bytes) != model(changed)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == list(range(3, 11))


def test_the_papers_initialisation():
    torch.manual_seed(0)
    weight = MegaByteConfig().build().global_stack.layers[0].feed_forward.up.weight
    assert weight.abs().max() <= 2 * 0.006
    assert weight.std().item() == pytest.approx(0.88 * 0.006, rel=0.05)  # of a normal cut at two deviations
    model = TransformerConfig(n_layer=8).build()
    assert model.stack.layers[0].attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (TransformerConfig, {"n_head": 5}, "d_model=192 must be a multiple of twice model.n_head=5"),
        (TransformerConfig, {"window": 0}, "window must be at least 1"),
        (MegaByteConfig, {"patch_size": 5}, "d_model=192 must be a multiple of model.patch_size=5"),
        (MegaByteConfig, {"local_n_head": 5}, "local_d_model=192 must be a multiple"),
        (PerceiverARConfig, {"rotary_fraction": 1.5}, "rotary_fraction must be above 0 and at most 1"),
        (PerceiverARConfig, {"n_latents": 0}, "n_latents must be at least 1"),
        (GatedS4DConfig, {"d_state": 7}, "d_state=7 must be even"),
        (GatedS4DConfig, {"dt_min": 0.2}, "dt_min and dt_max"),
        (LSTMConfig, {"d_model": 0}, "d_model must be at least 1"),
        (CNNConfig, {"kernel_size": 0}, "kernel_size must be at least 1"),
    ],
)
def test_refusals(config, settings, message):
    with pytest.raises(UserError, match=message):
        config(**settings)


@torch.no_grad()
def test_megabyte_says_where_its_positions_end():
    model = MEGABYTE.build()
    assert model(random_bytes(1, 67)).shape == (1, 67, 256)  # the last patch is not complete
    with pytest.raises(UserError, match="positions for 64 bytes and was given 68"):
        model(random_bytes(1, 68))
    _, state = model.prefill(random_bytes(1, 67))
    with pytest.raises(UserError, match="positions for 64 bytes"):
        model.step(torch.tensor([1]), state)
