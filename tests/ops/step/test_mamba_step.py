"""The step of generation: equal to the forward pass, and the same bits in any batch."""

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig
from mambabyte.ops import use_backend

SHAPES = {
    "small": {"d_model": 48, "n_layer": 3, "d_state": 8, "norm": "rms", "tie_embeddings": True},
    "odd": {"d_model": 37, "n_layer": 2, "d_state": 5, "norm": "layer", "expand": 1, "dt_rank": 3},
    "wide_state": {"d_model": 21, "n_layer": 1, "d_state": 35, "d_conv": 2},
    "no_convolution": {"d_model": 16, "n_layer": 2, "d_state": 16, "d_conv": 1},
}


def build(shape):
    torch.manual_seed(0)
    return MambaByteConfig(**SHAPES[shape]).build().eval()


def walk(model, bytes):
    state, rows = model.initial_state(len(bytes)), []
    for byte in bytes.unbind(1):
        logits, state = model.step(byte, state)
        rows.append(logits)
    return torch.stack(rows, 1), state


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 3, 6])
def test_steps_equal_the_forward_pass_in_double_precision(shape, batch):
    model = build(shape)
    bytes = torch.randint(0, 256, (batch, 23))
    logits, state = walk(model, bytes)
    expected, expected_state = model.double().prefill(bytes)
    # fp32 sums of a few hundred terms of size 1, through three layers and 23 steps
    torch.testing.assert_close(logits.double(), expected, rtol=2e-5, atol=2e-5)
    for ours, theirs in zip(state, expected_state, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_a_row_is_the_same_bit_for_bit_in_any_batch_and_at_any_number_of_threads():
    torch.manual_seed(1)
    model = MambaByteConfig(d_model=200, n_layer=2, d_state=12).build().eval()
    bytes = torch.randint(0, 256, (37, 5))  # enough work for several threads
    threads = torch.get_num_threads()
    alone, _ = walk(model, bytes[5:6])
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            for rows in (slice(0, 37), slice(4, 9), slice(5, 7)):
                together, _ = walk(model, bytes[rows])
                assert torch.equal(together[5 - rows.start], alone[0]), (number, rows)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_the_state_that_was_given_is_left_as_it_was():
    model = build("small")
    _, state = walk(model, torch.randint(0, 256, (2, 4)))
    kept = [tuple(tensor.clone() for tensor in layer) for layer in state]
    first, _ = model.step(torch.tensor([1, 2]), state)
    second, _ = model.step(torch.tensor([1, 2]), state)
    assert torch.equal(first, second)
    for layer, before in zip(state, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, before, strict=True))


@torch.no_grad()
def test_half_precision_state_and_strided_inputs_are_taken():
    model = build("small")
    _, state = walk(model, torch.randint(0, 256, (4, 4)))
    every_other = [tuple(tensor[::2] for tensor in layer) for layer in state]
    pairs = torch.tensor([[7, 0], [8, 0]], dtype=torch.uint8)
    logits, _ = model.step(pairs[:, 0], every_other)
    expected, _ = model.step(torch.tensor([7, 0, 8, 0]), state)
    assert torch.equal(logits, expected[::2])
    low = [tuple(tensor.bfloat16() for tensor in layer) for layer in state]
    logits, after = model.step(torch.tensor([7, 0, 8, 0]), low)
    assert torch.allclose(logits, expected, atol=0.05) and after[0][0].dtype == torch.float32


@torch.no_grad()
def test_calls_that_the_kernel_does_not_serve_use_the_other_ops():
    model = build("odd")
    state = model.initial_state(1)
    fast, _ = model.step(torch.tensor([65]), state)
    with use_backend("reference"):
        slow, _ = model.step(torch.tensor([65]), state)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    with torch.enable_grad():
        logits, _ = model.step(torch.tensor([65]), state)
    assert logits.requires_grad


@torch.no_grad()
def test_wrong_bytes_and_states_are_refused():
    model = build("small")
    with pytest.raises(UserError, match="0 to 255"):
        model.step(torch.tensor([256]), model.initial_state(1))
    with pytest.raises(UserError, match="no state of this model for a batch of 1"):
        model.step(torch.tensor([1]), model.initial_state(2))
