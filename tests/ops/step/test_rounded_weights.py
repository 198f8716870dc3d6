"""Weights in bf16 and int8, and steps that overwrite their state."""

import copy

import pytest
import torch

from mambabyte.models import MambaByteConfig
from mambabyte.ops.step import MambaStepper, PreparedMamba, mamba_step
from mambabyte.ops.step.cpu import rounded

SHAPES = {
    "even": {"d_model": 64, "n_layer": 2, "d_state": 16, "norm": "rms", "tie_embeddings": True},
    "odd": {"d_model": 37, "n_layer": 2, "d_state": 5, "norm": "layer", "expand": 1, "dt_rank": 3},
    "wide_state": {"d_model": 151, "n_layer": 1, "d_state": 35, "d_conv": 2},
}
STORAGES = ("bf16", "int8")


def build(shape):
    torch.manual_seed(0)
    return MambaByteConfig(**SHAPES[shape]).build().eval()


def plainly_rounded(weight, storage):
    if storage == "bf16":
        return weight.bfloat16().double()
    scale = weight.double().abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, torch.round(weight / scale.float()) * scale, 0.0)


@torch.no_grad()
def with_rounded_weights(model, storage):
    """The model in fp64, with its matrices rounded. Its embedding is never rounded."""
    result = copy.deepcopy(model)
    result.lm_head.weight = torch.nn.Parameter(result.lm_head.weight.clone())
    result.double()
    pairs = [(result.lm_head, model.lm_head)]
    for ours, theirs in zip(result.backbone.layers, model.backbone.layers, strict=True):
        pairs += [
            (getattr(ours.mixer, n), getattr(theirs.mixer, n)) for n in ("in_proj", "x_proj", "out_proj")
        ]
    for ours, theirs in pairs:
        ours.weight.copy_(plainly_rounded(theirs.weight, storage))
    return result


def walk(model, bytes, storage):
    step = model.stepper(model.initial_state(len(bytes)), storage)
    return torch.stack([step(byte) for byte in bytes.unbind(1)], 1)


@torch.no_grad()
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 7])
def test_steps_equal_a_model_with_the_same_rounded_weights(shape, storage, batch):
    model = build(shape)
    bytes = torch.randint(0, 256, (batch, 11))
    expected = with_rounded_weights(model, storage)(bytes)
    # fp32 sums of a few hundred terms of size 1, through two layers and 11 steps
    torch.testing.assert_close(walk(model, bytes, storage).double(), expected, rtol=2e-5, atol=2e-5)
    assert (expected - model.double()(bytes)).abs().max() > 1e-4  # rounding shows at all


@torch.no_grad()
@pytest.mark.parametrize("storage", ["fp32", *STORAGES])
def test_a_row_is_the_same_bit_for_bit_in_any_batch_and_at_any_number_of_threads(storage):
    model = build("wide_state")
    bytes = torch.randint(0, 256, (33, 4))
    threads = torch.get_num_threads()
    alone = walk(model, bytes[5:6], storage)
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            for rows in (slice(0, 33), slice(4, 9), slice(5, 7)):
                assert torch.equal(walk(model, bytes[rows], storage)[5 - rows.start], alone[0])
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_a_stepper_computes_the_same_bits_as_steps_and_leaves_its_state_alone():
    model = build("odd")
    _, state = model.prefill(torch.randint(0, 256, (2, 9)))
    kept = [tuple(tensor.clone() for tensor in layer) for layer in state]
    step = model.stepper(state)
    now = state
    for byte in torch.randint(0, 256, (5, 2)):
        expected, now = model.step(byte, now)
        assert torch.equal(step(byte), expected)
    for layer, before in zip(state, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, before, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("storage", STORAGES)
def test_rounded_weights_are_those_of_when_they_were_rounded(storage):
    model = build("odd")
    weights, x = PreparedMamba(model.step_weights(), storage), torch.randn(1, 37)
    state = model.initial_state(1)
    expected, _ = mamba_step(x, state, weights)
    for parameter in model.parameters():
        parameter.add_(0.5)
    assert torch.equal(mamba_step(x, state, weights)[0], expected)


@torch.no_grad()
def test_int8_uses_its_whole_range_in_every_row():
    matrix = torch.tensor([[1.0, -2.0, 0.4], [0.0, 0.0, 0.0], [1e-30, 0.0, -1e-30]])
    values, scale = rounded(matrix, "int8")
    assert values.tolist() == [[64, -127, 25], [0, 0, 0], [127, 0, -127]]
    torch.testing.assert_close(values * scale[:, None], matrix, rtol=0, atol=2 / 254)


@torch.no_grad()
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_does_not_become_one(storage, value):
    model = build("odd")
    model.lm_head.weight[7, 3] = value
    logits = model.stepper(model.initial_state(1), storage)(torch.tensor([65]))
    assert not logits[0, 7].isfinite() and logits[0, :7].isfinite().all()


@torch.no_grad()
def test_wrong_shapes_are_refused():
    model = build("odd")
    with pytest.raises(ValueError, match="must have the shapes"):
        model.stepper(model.initial_state(1)[:1])
    step = model.stepper(model.initial_state(2))
    with pytest.raises(ValueError, match="there are 2 rows, and bytes for 1 were given"):
        step(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"x must have the shape \(batch, 37\), not \(1, 36\)"):
        mamba_step(torch.zeros(1, 36), model.initial_state(1), PreparedMamba(model.step_weights()))
    with pytest.raises(ValueError, match="prepared with their embedding"):
        MambaStepper(PreparedMamba(model.step_weights()), model.initial_state(1))
