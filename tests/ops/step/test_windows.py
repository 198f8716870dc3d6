"""Windows of the fused CPU step: the same bits as its steps, and a way back that is too."""

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig
from mambabyte.ops.step import windows

MODELS = {
    "even": {"d_model": 64, "n_layer": 2, "d_state": 16, "norm": "rms", "tie_embeddings": True},
    "odd": {"d_model": 37, "n_layer": 2, "d_state": 5, "norm": "layer", "expand": 1, "dt_rank": 3},
    "wide_state": {"d_model": 53, "n_layer": 1, "d_state": 35, "d_conv": 2},
    "long_convolution": {"d_model": 24, "n_layer": 2, "d_state": 4, "d_conv": 9},
    "no_convolution": {"d_model": 16, "n_layer": 1, "d_state": 20, "d_conv": 1},
    "ngrams": {"d_model": 40, "n_layer": 2, "d_state": 8, "ngram": 4, "ngram_buckets": 50, "ngram_width": 7},
}
STORAGES = ("fp32", "bf16", "int8")


def build(name="even"):
    torch.manual_seed(0)
    return MambaByteConfig(**MODELS[name]).build().eval()


def some_bytes(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


def begun(model, rows, storage="fp32"):
    """A stepper of rows with different texts behind them."""
    step = model.stepper(model.initial_state(rows), storage)
    step.read(some_bytes(rows, 6, seed=1))
    return step


def walk(step, bytes):
    return torch.stack([step(byte) for byte in bytes.unbind(1)], 1)


def assert_same_state(one, other):
    for ours, theirs in zip(one, other, strict=True):
        assert all(map(torch.equal, ours, theirs))


def states_after(model, rows, bytes, storage="fp32"):
    """The states after none of these bytes, one, .. all of them."""
    step = begun(model, rows, storage)
    states = [step.state()]
    for byte in bytes.unbind(1):
        step(byte)
        states.append(step.state())
    return states


@torch.no_grad()
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", MODELS)
def test_a_window_is_its_steps_bit_for_bit(name, storage):
    model = build(name)
    for rows in (1, 3, 33):
        for length in (1, 2, 5, 17):
            stepped, window = begun(model, rows, storage), begun(model, rows, storage)
            bytes = some_bytes(rows, length)
            assert torch.equal(window.window(bytes), walk(stepped, bytes)), (rows, length)
            assert_same_state(window.state(), stepped.state())
            bytes = some_bytes(rows, 3, seed=2)
            assert torch.equal(window.window(bytes), walk(stepped, bytes))


@torch.no_grad()
@pytest.mark.parametrize("storage", STORAGES)
def test_bits_depend_on_no_number_of_threads(storage):
    torch.manual_seed(0)
    # enough work for several threads
    model = MambaByteConfig(d_model=151, n_layer=2, d_state=12, ngram=3, ngram_buckets=99).build().eval()
    threads, bytes, found = torch.get_num_threads(), some_bytes(12, 9), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            step = begun(model, 12, storage)
            logits = step.window(bytes)
            step.keep([2, 9, 0, 8, 8, 7, 8, 6, 8, 5, 8, 8])
            found.append([(logits,), (step(bytes[:, 0]),), *step.state()])
    finally:
        torch.set_num_threads(threads)
    assert_same_state(found[0], found[1])
    assert_same_state(found[0], found[2])


@torch.no_grad()
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_kept_is_the_state_of_as_many_steps(name, storage):
    model = build(name)
    for length, counts in (
        (5, [2, 0, 5, 1]),
        (5, [0, 0, 0, 0]),
        (5, [5, 5, 5, 5]),
        (1, [1, 0, 1, 0]),
        (17, [16, 3, 1, 12]),
    ):
        bytes = some_bytes(4, length)
        after = states_after(model, 4, bytes, storage)
        step = begun(model, 4, storage)
        step.window(bytes)
        step.keep(counts)
        expected = [
            tuple(
                torch.stack([after[count][layer][part][row] for row, count in enumerate(counts)])
                for part in range(len(after[0][layer]))
            )
            for layer in range(len(after[0]))
        ]
        assert_same_state(step.state(), expected)
        other = model.stepper(expected, storage)
        more = some_bytes(4, 4, seed=3)
        assert torch.equal(step(more[:, 0]), other(more[:, 0]))  # a step after a keep
        assert torch.equal(step.window(more), walk(other, more))  # a window after it
        assert_same_state(step.state(), other.state())


@torch.no_grad()
@pytest.mark.parametrize("name", ["odd", "long_convolution", "ngrams"])
def test_windows_follow_each_other_with_and_without_keeping(name):
    """The step's texts are read again, row by row, by another one."""
    model = build(name)
    step, random = begun(model, 3), torch.Generator().manual_seed(5)
    texts = some_bytes(3, 6, seed=1).tolist()
    for length in (4, 1, 3, 7, 2, 4):
        bytes = some_bytes(3, length, seed=length)
        step.window(bytes)
        counts = torch.randint(0, length + 1, (3,), generator=random).tolist()
        if length == 3:
            counts = [3, 3, 3]  # what not saying anything means
        else:
            step.keep(counts)
        for text, row, count in zip(texts, bytes.tolist(), counts, strict=True):
            text += row[:count]
    byte = some_bytes(3)
    logits = step(byte)
    for row, text in enumerate(texts):
        alone = model.stepper(model.initial_state(1))
        alone.read(torch.tensor([text]))
        assert torch.equal(alone(byte[row : row + 1]), logits[row : row + 1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["even", "ngrams"])
def test_rows_come_and_go_with_their_bits(name):
    model = build(name)
    bytes, more = some_bytes(4, 3), some_bytes(5, 3, seed=2)
    step, whole = begun(model, 4), begun(model, 4)
    step.window(bytes)
    step.keep([1, 2, 3, 0])
    whole.window(bytes)
    whole.keep([1, 2, 3, 0])
    logits = whole.window(more[[0, 0, 1, 3]])
    step.select([2, 0, 1, 2])
    with pytest.raises(ValueError, match="no window"):
        step.keep([0, 0, 0, 0])
    step.append(step.state([3]))
    step.select([0, 1, 2, 4, 0])
    assert step.rows() == 5
    found = step.window(more[[1, 0, 0, 1, 1]])
    assert torch.equal(found, logits[[2, 0, 1, 2, 2]])
    step.keep([3, 0, 1, 2, 3])
    step.select([0])
    assert_same_state(step.state(), whole.state([2]))
    step.select([])
    with pytest.raises(ValueError, match="there are no rows"):
        step.window(torch.empty(0, 2, dtype=torch.int64))
    step.append(whole.state([2, 1]))
    byte = more[:4, 2]
    assert torch.equal(step(byte[[2, 1]]), whole(byte)[[2, 1]])
    assert_same_state(step.state(), whole.state([2, 1]))


@torch.no_grad()
def test_a_prompt_is_read_in_pieces(monkeypatch):
    model, bytes = build("ngrams"), some_bytes(3, 50)
    whole = model.stepper(model.initial_state(3))
    logits = whole.window(bytes)
    monkeypatch.setattr(windows, "READ_POSITIONS", 20)
    step = model.stepper(model.initial_state(3))
    assert torch.equal(step.read(bytes), logits[:, -1])
    assert_same_state(step.state(), whole.state())
    expected, state = model.prefill(bytes)
    # fp32 sums in another order, logits of order 1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
    assert torch.equal(state[0][0], step.state()[0][0])
    step, before = model.stepper(state), model.stepper(state).state()
    bytes[2, 49] = 256
    with pytest.raises(UserError, match="0 to 255"):
        step.read(bytes)
    assert_same_state(step.state(), before)


@torch.no_grad()
def test_what_is_refused_changes_nothing():
    model = build("ngrams")
    step, bytes = begun(model, 2), some_bytes(2, 3)
    with pytest.raises(ValueError, match="no window"):
        step.keep([0, 0])
    step.window(bytes)
    state = step.state([0])
    refused = [
        (UserError, "0 to 255", lambda: step.window(torch.full((2, 9), 256))),
        (UserError, "0 to 255", lambda: step(torch.tensor([0, -1]))),
        (ValueError, "there are 2 rows", lambda: step.window(bytes[:1])),
        (ValueError, "each of 2 rows keeps from 0 to 3", lambda: step.keep([4, 0])),
        (ValueError, "rows are from 0 to 1", lambda: step.select([2])),
        (ValueError, "rows are from 0 to 1", lambda: step.state([-1])),
        (ValueError, "must have 3 columns", lambda: step.append([(torch.zeros(1, 2),), *state[1:]])),
        (ValueError, "must have the shapes", lambda: step.append(state[:2])),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()
    bytes.zero_()  # the caller's own
    step.keep([1, 2])
    expected = states_after(model, 2, some_bytes(2, 3))
    assert torch.equal(step.state()[0][0][1], expected[2][0][0][1])
    assert torch.equal(step.state()[2][1][0], expected[1][2][1][0])
