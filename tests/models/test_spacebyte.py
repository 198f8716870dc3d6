"""SpaceByte against its paper's equations, written out plainly on the same weights; text, whose rows open
different numbers of patches; and what a user gets wrong."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, layer_norm
from torch.utils.flop_counter import FlopCounterMode

from mambabyte.errors import UserError
from mambabyte.models import SpaceByteConfig
from mambabyte.models.spacebyte import spacelike
from mambabyte.models.states import join_rows, select_rows

CONFIG = SpaceByteConfig(
    max_length=64, d_model=32, n_layer=2, n_head=2, local_d_model=16, local_n_layer=3, local_n_head=1,
    local_window=6, initializer_scale=0.8, embedding_std=0.5,
)  # fmt: skip
FIXED = replace(CONFIG, patching="fixed", bytes_per_chunk=4)
TEXTS = [
    b'He said: "No;  not I", and left!!',
    b"w" * 33,
    "Übér 東京 naïve, ß ok 12".encode().ljust(33, b"x"),
    b"\xff\xfe a\x80\xbf\xc0b\xf8\xff\xffc\x00d \xc3( \xe2\x28\xa1 a0".ljust(33, b"x"),
    b" " * 33,
]
CLOSE = {"atol": 2e-5, "rtol": 0}  # fp32 sums in another order, logits of order 1


def tensor(*texts):
    return torch.tensor([list(text) for text in texts])


def built(config=CONFIG):
    torch.manual_seed(0)
    return config.build()


def naive_places(text, config):
    if config.patching == "fixed":
        return list(range(0, len(text), int(config.bytes_per_chunk)))
    in_a_word = [(byte < 128 and chr(byte).isalnum()) or 128 <= byte < 192 for byte in text]
    return [t for t in range(len(text)) if t == 0 or (in_a_word[t - 1] and not in_a_word[t])]


def rotated(x, places):
    """x (L, h): channels 2i and 2i + 1 turned by place * 10000^(-2i / h)."""
    half = x.shape[-1] // 2
    angles = places[:, None] * 10_000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    even, odd = x[:, 0::2], x[:, 1::2]
    turned = [even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()]
    return torch.stack(turned, -1).flatten(-2)


def naive_block(x, weights, heads, window):
    """x (L, d) after attention and feed-forward, over dense scores."""

    def norm(y, name):
        return layer_norm(y, y.shape[-1:], weights[f"{name}.scale"])

    places = torch.arange(len(x), dtype=x.dtype)
    distance = places[:, None] - places
    seen = (distance >= 0) & (distance < window)
    qkv = norm(x, "attention.layer_norm") @ weights["attention.QKV_linear.weight"].T
    outs = []
    q, k, v = (part.chunk(heads, -1) for part in qkv.chunk(3, -1))
    for head in range(heads):
        query = rotated(norm(q[head], "attention.Q_layer_norm"), places)
        key = rotated(norm(k[head], "attention.K_layer_norm"), places)
        scores = (query @ key.T / math.sqrt(query.shape[-1])).masked_fill(~seen, -math.inf)
        outs.append(scores.softmax(-1) @ v[head])
    x = x + torch.cat(outs, -1) @ weights["attention.linear.weight"].T
    inner = (norm(x, "feedforward.layer_norm") @ weights["feedforward.linear_1.weight"].T).relu()
    return x + inner @ weights["feedforward.linear_2.weight"].T


def naive(model, text):
    """The logits (L, 256) of one document, as section 3 of the paper describes them."""
    config, weights = model.config, dict(model.named_parameters())

    def run(x, kind, heads, window):
        for index in range(len(getattr(model, kind))):
            prefix = f"{kind}.{index}."
            own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            x = naive_block(x, own, heads, window)
        return x

    x = weights["token_embedding.weight"][list(text)] + weights["local_position_encoding"][: len(text)]
    x = run(x, "initial_blocks", config.local_n_head, config.local_window)
    places = naive_places(text, config)
    zeros = x.new_zeros(len(places), config.d_model - config.local_d_model)
    y = torch.cat([zeros, x[places]], -1) + weights["global_position_encoding"][: len(places)]
    y = run(y, "global_blocks", config.n_head, math.inf)[:, -config.local_d_model :]
    rows = dict(zip(places, y, strict=True))
    x = torch.stack([row + rows[t] if t in rows else row for t, row in enumerate(x)])
    x = run(x, "final_blocks", config.local_n_head, config.local_window)
    x = layer_norm(x, x.shape[-1:], weights["logits.layer_norm.scale"])
    return x @ weights["logits.logits_linear.weight"].T


@pytest.mark.parametrize("config", [CONFIG, FIXED], ids=["spacelike", "fixed"])
def test_it_is_the_papers_model(config):
    model = built(config).double()
    bytes = tensor(*TEXTS)
    weigh = torch.randn(len(TEXTS), len(TEXTS[0]), 256, dtype=torch.float64)
    results = []
    for logits in (model(bytes), torch.stack([naive(model, text) for text in TEXTS])):
        model.zero_grad()
        (logits * weigh).sum().backward()
        results.append((logits, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (ours, gradients), (expected, expected_gradients) = results
    assert torch.allclose(ours, expected, atol=1e-11)
    for name, gradient in expected_gradients.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-10 * gradient.abs().max()), name


def test_parameters_are_named_as_the_authors_name_them():
    block = [
        *("attention.layer_norm.scale", "attention.QKV_linear.weight", "attention.linear.weight"),
        *("attention.Q_layer_norm.scale", "attention.K_layer_norm.scale"),
        *("feedforward.layer_norm.scale", "feedforward.linear_1.weight", "feedforward.linear_2.weight"),
    ]
    expected = {
        "token_embedding.weight": (256, 16),
        "local_position_encoding": (64, 16),
        "global_position_encoding": (33, 32),
        "logits.layer_norm.scale": (16,),
        "logits.logits_linear.weight": (256, 16),
    }
    for kind, count, d in (("initial", 1, 16), ("global", 2, 32), ("final", 2, 16)):
        head = 16  # channels
        shapes = [(d,), (3 * d, d), (d, d), (head,), (head,), (d,), (4 * d, d), (d, 4 * d)]
        for index in range(count):
            expected |= {f"{kind}_blocks.{index}.{n}": s for n, s in zip(block, shapes, strict=True)}
    assert {name: tuple(w.shape) for name, w in built().state_dict().items()} == expected


def test_the_spacelike_bytes_are_neither_letters_nor_digits_nor_continuations():
    words = [*range(ord("0"), ord("9") + 1), *range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)]
    expected = [byte not in words and not 0x80 <= byte <= 0xBF for byte in range(256)]
    assert spacelike(torch.arange(256)).tolist() == expected
    assert spacelike(torch.arange(256, dtype=torch.uint8)).tolist() == expected


@pytest.mark.parametrize(
    ("text", "patches"),
    [
        (b"the cat", [0, 3]),
        (b" the  cat.\n", [0, 4, 9]),
        (b", the", [0]),  # the first byte is spacelike, so the second opens nothing
        ("né東".encode(), [0, 1, 3]),
        (b"a\xff\xfeb\xfe", [0, 1, 4]),  # 254 and 255 are data
        (b"a\x80\xbf b\xc3", [0, 3, 5]),  # continuation bytes of nothing
    ],
)  # fmt: skip
def test_which_bytes_open_a_patch(text, patches):
    model = built()
    state = model.initial_state(1)
    opened = []
    for t, byte in enumerate(text):
        before = state[0][1].item()
        state = model.step(bytes([byte]), state)[1]
        if state[0][1].item() > before:
            opened.append(t)
    assert opened == patches
    assert model.chunk_rates(text) == [pytest.approx(len(patches) / len(text))]


def test_patches_per_byte_of_packed_documents():
    bytes, start = tensor(b"ab cd ef", b"abcdefgh"), torch.zeros(2, 8, dtype=torch.bool)
    assert built().chunk_rates(bytes) == [4 / 16]
    start[0, 4] = start[1, 0] = start[1, 7] = True
    assert built().chunk_rates(bytes, start) == [6 / 16]
    assert built(FIXED).chunk_rates(bytes) == [4 / 16]
    start[0, 4] = False
    assert built(FIXED).chunk_rates(bytes, start) == [5 / 16]


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIG, FIXED], ids=["spacelike", "fixed"])
def test_text_steps_and_splits_anywhere(config):
    model, bytes = built(config), tensor(*TEXTS)
    whole = model(bytes)
    state, stepped = model.initial_state(len(TEXTS)), []
    for t in range(bytes.shape[1]):
        logits, state = model.step(bytes[:, t], state)
        stepped.append(logits)
    assert torch.allclose(torch.stack(stepped, 1), whole, **CLOSE)
    for cut in range(1, bytes.shape[1]):
        first, state = model.prefill(bytes[:, :cut])
        second, state = model.prefill(bytes[:, cut:], state)
        assert torch.allclose(torch.cat([first, second], 1), whole, **CLOSE), cut
        assert state[0][1].tolist() == [len(naive_places(text, config)) for text in TEXTS]


@torch.no_grad()
def test_rows_are_chosen_and_joined_whatever_they_have_read():
    model, bytes = built(), tensor(*TEXTS)
    whole = model(bytes)
    _, state = model.prefill(bytes[:, :20])
    rows = [3, 1]
    chosen = model(bytes[rows, 20:], select_rows(state, rows))
    assert torch.allclose(chosen, whole[rows, 20:], **CLOSE)
    some = [select_rows(state, rows) for rows in ([2, 0], [4])]
    joined = model(bytes[[2, 0, 4], 20:], join_rows(some))
    assert torch.allclose(joined, whole[[2, 0, 4], 20:], **CLOSE)


@torch.no_grad()
def test_rows_leave_the_padding_of_others_behind():
    model, bytes = built(), tensor(*TEXTS)
    _, state = model.prefill(bytes)
    rows = [1, 4]
    trimmed = model.trimmed(select_rows(state, rows))
    alone = model.prefill(bytes[rows])[1]
    torch.testing.assert_close(trimmed, alone, **CLOSE)
    assert model.trimmed(model.initial_state(0))[0][0].shape == (0,)


def test_gradients_of_text_flow_through_a_split_state():
    model, bytes = built().double(), tensor(*TEXTS)
    gradients = []
    for cut in (None, 17):
        model.zero_grad()
        if cut is None:
            logits = model(bytes)
        else:
            first, state = model.prefill(bytes[:, :cut])
            logits = torch.cat([first, model(bytes[:, cut:], state)], 1)
        cross_entropy(logits[:, :-1].flatten(0, 1), bytes[:, 1:].flatten()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, atol=1e-12), name


@torch.no_grad()
def test_the_first_byte_of_a_packed_document_opens_a_patch():
    model, text = built(), TEXTS[0] + b"cats  purr" + TEXTS[2][:20]
    start = torch.zeros(1, len(text), dtype=torch.bool)
    start[0, [33, 43]] = True
    packed = model(tensor(text), document_start=start)
    for first, last in ((0, 33), (33, 43), (43, len(text))):
        assert torch.allclose(packed[:, first:last], model(tensor(text[first:last])), **CLOSE)


@pytest.mark.parametrize("config", [CONFIG, FIXED], ids=["spacelike", "fixed"])
def test_flops_agree_with_pytorchs_counter(config):
    config = replace(config, max_length=560, local_window=560)
    model, text = built(config), b"Four score and seven years ago, our" * 16
    # in its plain form PyTorch's attention is matrix products, which the counter knows on every device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(text)
    measured = model.flops_per_byte(560, model.chunk_rates(text))
    assert measured.inference == pytest.approx(counter.get_total_flops() / 560, rel=1e-9)
    expected = model.flops_per_byte(560)
    if config.patching == "fixed":
        assert expected == measured
    assert expected == model.flops_per_byte(560, [1 / config.bytes_per_chunk])
    assert model.uses_per_byte("global_blocks.0.attention.linear") == 1 / config.bytes_per_chunk
    assert model.uses_per_byte("final_blocks.0.attention.linear") == 1


@torch.no_grad()
def test_it_says_where_its_positions_end():
    model = built(replace(CONFIG, max_length=16, global_max_length=3))
    text = b"a b cccccccccccc"
    assert model(text).shape == (1, 16, 256)
    with pytest.raises(
        UserError, match=r"positions for 16 bytes and was given 17; .* larger model.max_length"
    ):
        model(text + b"c")
    with pytest.raises(UserError, match=r"positions for 3 patches and was given 4; .* model.global_max_len"):
        model(b"a b c cccc")
    _, state = model.prefill(text[:6])
    assert model.prefill(b"c" * 10, state)[0].shape == (1, 10, 256)
    with pytest.raises(UserError, match="positions for 16 bytes and was given 17"):
        model.prefill(b"c" * 11, state)
    with pytest.raises(UserError, match="positions for 3 patches and was given 4"):
        model.step(b" ", state)
    # one patch to the last position beside two
    whole = tensor(b"a baa aaaaa", b"aaaaa b aaa")
    _, state = model.prefill(whole[:, :5])
    assert torch.allclose(model(whole[:, 5:], state), model(whole)[:, 5:], **CLOSE)


@pytest.mark.parametrize("patching", ["spacelike", "fixed"])
def test_by_default_no_text_has_too_many_patches(patching):
    model = built(replace(CONFIG, patching=patching, max_length=17, bytes_per_chunk=1))
    assert model(b"a b c d e f g h i").shape == (1, 17, 256)
    assert model(b" a b c d e f g h ").shape == (1, 17, 256)


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "most"),
    [(CONFIG, 64), (replace(CONFIG, global_max_length=5), 9), (replace(FIXED, global_max_length=5), 20)],
)
def test_how_long_any_text_may_be(config, most):
    assert config.max_bytes == most
    worst = (b"a " * most)[:most]
    assert built(config)(worst).shape[1] == most
    with pytest.raises(UserError, match="SpaceByte has positions for"):
        built(config)((b"a " * most)[: most + 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_d_model": 512}, "local_d_model=512 must be at most model.d_model=256"),
        ({"n_head": 3}, "d_model=256 must be a multiple of twice model.n_head=3"),
        ({"local_n_head": 3}, "local_d_model=128 must be a multiple of twice model.local_n_head=3"),
        ({"patching": "fixed", "bytes_per_chunk": 4.5}, "bytes_per_chunk=4.5 must be whole"),
        ({"patching": "words"}, "model.patching must be"),
        ({"bytes_per_chunk": 0.5}, "bytes_per_chunk must be at least 1"),
        ({"local_window": 0}, "local_window must be at least 1"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        SpaceByteConfig(**settings)
