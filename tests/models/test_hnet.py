"""H-Net's router, chunks, smoothing and losses against the paper's equations, one position after another."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode

from mambabyte.errors import UserError
from mambabyte.evaluation import Protocol
from mambabyte.evaluation.protocols import scored_spans
from mambabyte.models import HNetConfig
from mambabyte.models.hnet import ratio_losses
from mambabyte.models.hnet_layers import (
    Attention,
    Boundaries,
    Isotropic,
    RoutingModule,
    SwiGLU,
    at_places,
    chunk_starts,
    smoothed,
    straight_through,
)
from mambabyte.models.layers import rotary_factors
from mambabyte.models.states import select_rows
from mambabyte.training.planning.memory_estimate import peak_of_a_pass
from mambabyte.training.settings import TrainerSettings
from tests.models.every_model import MODELS, random_bytes

# fp64 sums in another order
CLOSE = {"atol": 1e-12, "rtol": 1e-9}


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def naive_chunking(x, Wq, Wk, main):
    """The paper's section 2.2 for one row x (L, d): where chunks begin, and the decoder's input without the
    residual, (L, d), for a `main` network that maps a chunk's vector."""
    chunks, outputs, begins = [], [], []
    for t in range(len(x)):
        p = torch.ones((), dtype=x.dtype)
        if t > 0:
            p = (1 - cosine_similarity(Wq @ x[t - 1], Wk @ x[t], dim=0)) / 2
        begins.append(bool(p >= 0.5))
        if begins[-1]:
            weight = p.clamp(1e-4, 1 - 1e-4)
            before = chunks[-1] if chunks else torch.zeros_like(x[0])
            chunks.append(weight * main(x[t]) + (1 - weight) * before)
        confidence = p if begins[-1] else 1 - p
        # forward 1, backward the confidence itself
        outputs.append(chunks[-1] * (confidence + (1 - confidence).detach()))
    return begins, torch.stack(outputs)


@pytest.mark.parametrize("length", [1, 2, 7, 23])
def test_routing_smoothing_and_straight_through_follow_the_equations(length):
    rows, width = 3, 5
    router = RoutingModule(width).double()
    x = random(rows, length, width).requires_grad_()
    Wq = (torch.eye(width, dtype=x.dtype) + 0.3 * random(width, width, seed=1)).requires_grad_()
    Wk = (torch.eye(width, dtype=x.dtype) + 0.3 * random(width, width, seed=2)).requires_grad_()
    mixing, weights = random(width, width, seed=3), random(rows, length, width, seed=4)
    router.q_proj_layer.weight.data, router.k_proj_layer.weight.data = Wq.detach(), Wk.detach()

    p, begins = router(x, None, None)
    number = begins.cumsum(1)
    most = int(number.max())
    places = chunk_starts(number, begins, most)
    exists = torch.arange(most) < number[:, -1:]
    z = smoothed(at_places(x, places) @ mixing.T, p.gather(1, places), exists, x.new_zeros(rows, width))
    ours = at_places(z, number - 1) * straight_through(p, begins).unsqueeze(-1)
    wanted = [naive_chunking(row, Wq, Wk, lambda chunk: mixing @ chunk) for row in x]
    assert begins.tolist() == [row for row, _ in wanted]
    assert length < 7 or len(set(number[:, -1].tolist())) > 1, "rows of different numbers of chunks"
    naive = torch.stack([output for _, output in wanted])
    torch.testing.assert_close(ours, naive, **CLOSE)
    expected = torch.autograd.grad((naive * weights).sum(), [x, Wq, Wk], allow_unused=True)
    parameters = [x, router.q_proj_layer.weight, router.k_proj_layer.weight]
    got = torch.autograd.grad((ours * weights).sum(), parameters)
    for ours_grad, naive_grad in zip(got, expected, strict=True):
        if naive_grad is None:  # one position, which the router says nothing of
            naive_grad = torch.zeros_like(ours_grad)
        torch.testing.assert_close(ours_grad, naive_grad, **CLOSE)


def test_a_router_begins_with_the_cosine_of_neighbours():
    x = random(1, 4, 6).float()
    x[0, 2] = -x[0, 1]  # opposites
    x[0, 3] = 5 * x[0, 2]  # alike
    p, begins = RoutingModule(6)(x, None, None)
    assert p[0, [0, 2, 3]].tolist() == pytest.approx([1, 1, 0], abs=1e-6)
    assert begins[0, [0, 2, 3]].tolist() == [True, True, False]


def test_ratio_losses_follow_the_equation_on_the_bytes_that_count():
    read = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    p = random(2, 6).sigmoid().requires_grad_()
    q = random(2, 6, seed=1).sigmoid().requires_grad_()
    outer, inner = p.detach() >= 0.5, q.detach() >= 0.4
    found = [Boundaries(p, outer), Boundaries(q * outer, inner & outer)]
    ours = ratio_losses(found, [3.0, 2.5], read)
    wanted = []
    for probabilities, begins, n, positions in ((p, outer, 3.0, read), (q, inner, 2.5, read & outer)):
        kept = [(b, t) for b in range(2) for t in range(6) if positions[b, t]]
        F = sum(float(begins[at]) for at in kept) / len(kept)
        G = sum(probabilities[at] for at in kept) / len(kept)
        wanted.append(n / (n - 1) * ((n - 1) * F * G + (1 - F) * (1 - G)))
    torch.testing.assert_close(ours, torch.stack(wanted), **CLOSE)
    for got, expected in zip(
        torch.autograd.grad(ours.sum(), [p, q]), torch.autograd.grad(sum(wanted), [p, q]), strict=True
    ):
        torch.testing.assert_close(got, expected, **CLOSE)


def test_a_ratio_loss_is_one_at_its_target():
    begins = torch.arange(12).expand(1, -1) % 4 == 0
    (loss,) = ratio_losses([Boundaries(begins.double(), begins)], [4.0], torch.ones_like(begins))
    assert float(loss) == pytest.approx(1)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_rotates_halves_and_sees_its_window(window):
    width, heads, rotated, length = 12, 2, 4, 9
    torch.manual_seed(0)
    attention = Attention(width, heads, window, rotated).double()
    x = random(1, length, width)
    q, k, v = (attention.Wqkv(x)[0].unflatten(-1, (3, heads, -1))[:, i] for i in range(3))

    def turned(vector, position):
        vector = vector.clone()
        for i in range(rotated // 2):
            angle = position * 10_000.0 ** (-2 * i / rotated)
            a, b = vector[i].item(), vector[i + rotated // 2].item()
            vector[i] = a * math.cos(angle) - b * math.sin(angle)
            vector[i + rotated // 2] = a * math.sin(angle) + b * math.cos(angle)
        return vector

    out = torch.zeros(length, heads, width // heads, dtype=x.dtype)
    for t in range(length):
        seen = range(0 if window is None else max(0, t - window + 1), t + 1)
        for head in range(heads):
            scores = [turned(q[t, head], t) @ turned(k[s, head], s) / math.sqrt(width // heads) for s in seen]
            weights = torch.stack(scores).softmax(0)
            out[t, head] = sum(weight * v[s, head] for weight, s in zip(weights, seen, strict=True))
    rotary = rotary_factors(torch.arange(length), rotated, 10_000.0, x.dtype)
    torch.testing.assert_close(attention(x, None, rotary)[0][0], attention.out_proj(out.flatten(1)), **CLOSE)


def test_the_mlps_width_is_rounded_up():
    assert SwiGLU(8, 100).fc2.weight.shape == (8, 128)
    assert SwiGLU(8, 2816).fc1.weight.shape == (2 * 2816, 8)


def test_parameters_have_the_authors_names():
    """Those of the modules that their checkpoints hold (goombalab/hnet: HNetForCausalLM's state dict)."""
    mamba2 = [
        *("norm1.weight", "mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.conv1d.bias"),
        *("mixer.dt_bias", "mixer.A_log", "mixer.D", "mixer.norm.weight", "mixer.out_proj.weight"),
    ]
    attention = ["norm1.weight", "mixer.Wqkv.weight", "mixer.out_proj.weight"]
    mlp = ["norm2.weight", "mlp.fc1.weight", "mlp.fc2.weight"]
    between = [
        *("routing_module.q_proj_layer.weight", "routing_module.k_proj_layer.weight"),
        *("residual_proj.weight", "residual_proj.bias"),
    ]
    wanted = {"embeddings.weight", "lm_head.weight"}
    stacks = {
        "backbone.encoder": [attention],
        "backbone.decoder": [mamba2],
        "backbone.main_network.encoder": [mamba2],
        "backbone.main_network.decoder": [attention],
        "backbone.main_network.main_network.main_network": [attention + mlp],
    }
    for stack, layers in stacks.items():
        wanted |= {f"{stack}.layers.{i}.{name}" for i, names in enumerate(layers) for name in names}
        wanted.add(f"{stack}.rmsnorm.weight")
    wanted |= {f"{stage}.{name}" for stage in ("backbone", "backbone.main_network") for name in between}
    wanted.add("backbone.main_network.main_network.pad_dimension")  # 24 channels within 16
    assert set(MODELS["hnet-2-stages"].build().state_dict()) == wanted


def test_initial_weights():
    torch.manual_seed(0)
    model = HNetConfig().build()  # m3, T2, m3
    weights = dict(model.named_parameters())
    assert weights["embeddings.weight"].std().item() == pytest.approx(1, rel=0.02)
    assert weights["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    inside = "backbone.main_network.main_network.layers.1."
    # 6 things are added to the outer residual stream, and 4 to the inner one
    for name, std in {
        "backbone.encoder.layers.1.mixer.in_proj.weight": 0.02,
        "backbone.decoder.layers.2.mixer.out_proj.weight": 0.02 / math.sqrt(6),
        f"{inside}mixer.Wqkv.weight": 0.02,
        f"{inside}mixer.out_proj.weight": 0.02 / math.sqrt(10),
        f"{inside}mlp.fc2.weight": 0.02 / math.sqrt(10),
    }.items():
        assert weights[name].std().item() == pytest.approx(std, rel=0.02), name
    for name in ("residual_proj.weight", "residual_proj.bias", "main_network.pad_dimension"):
        assert not weights[f"backbone.{name}"].any(), name


def test_memory_is_estimated_with_the_expected_chunks(monkeypatch):
    """Where a tensor has no data, nobody can count its chunks."""
    settings = TrainerSettings(max_steps=1, global_batch_bytes=192, micro_batch_size=2, accelerator="cpu")
    lengths = []
    inner = Isotropic.forward
    monkeypatch.setattr(
        Isotropic, "forward", lambda self, x, *more: lengths.append(x.shape[1]) or inner(self, x, *more)
    )
    peak_of_a_pass(MODELS["hnet-2-stages"], settings, 96, torch.device("cpu"))
    assert lengths == [96, 48, 24, 48, 96]


@torch.no_grad()
@pytest.mark.parametrize("name", ["hnet", "hnet-2-stages"])
def test_rows_with_other_numbers_of_chunks_step_like_each_alone(name):
    torch.manual_seed(0)
    model = MODELS[name].build()
    bytes = random_bytes(4, 28)
    bytes[1, :] = 7  # one chunk, and perhaps a few
    bytes[2, 8:20] = 9
    counts = torch.stack(
        [model.backbone(model.embeddings(row[None]), None)[2][0].begins.sum() for row in bytes]
    )
    assert len(set(counts.tolist())) > 1
    states = [model.initial_state(4), *(model.initial_state(1) for _ in range(4))]
    for t in range(28):
        together, states[0] = model.step(bytes[:, t], states[0])
        for row in range(4):
            alone, states[1 + row] = model.step(bytes[row : row + 1, t], states[1 + row])
            # fp32 sums in another order, logits of order 1
            torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=0)
    for row in range(4):
        own = model.trimmed(select_rows(states[0], [row]))
        torch.testing.assert_close(own, states[1 + row], atol=2e-5, rtol=1e-4)


def test_the_ratio_loss_counts_no_padding():
    """A window's padding and that of documents that run together: the loss is that of the bytes alone."""
    torch.manual_seed(0)
    model = MODELS["hnet-2-stages"].build()
    bytes, start = random_bytes(1, 30), torch.zeros(1, 30, dtype=torch.bool)
    start[0, [0, 7, 12]] = True
    targets = bytes.roll(-1, 1)
    plain = model.training_loss(bytes, targets, start)
    padded = torch.cat([bytes, torch.zeros(1, 9, dtype=bytes.dtype)], 1)
    more = torch.cat([targets, torch.full((1, 9), -100)], 1)
    marks = torch.cat([start, torch.zeros(1, 9, dtype=torch.bool)], 1)
    loss = model.training_loss(padded, more, marks)
    torch.testing.assert_close(loss.auxiliary, plain.auxiliary)
    torch.testing.assert_close(loss.nats[:, :30], plain.nats)
    # three documents with their own statistics, weighted by their positions
    found = [model._read_with_boundaries(bytes[:, a:b], None)[1:] for a, b in ((0, 7), (7, 12), (12, 30))]
    joined = [torch.cat(parts, 1) for parts in zip(*found, strict=True)]
    read = torch.ones(1, 30, dtype=torch.bool)
    pairs = [Boundaries(*joined[:2]), Boundaries(*joined[2:])]
    wanted = 0.03 * ratio_losses(pairs, model.config.ratios, read).sum()
    torch.testing.assert_close(plain.auxiliary, wanted)


def test_chunk_rates_and_flops():
    torch.manual_seed(0)
    model = MODELS["hnet-2-stages"].build()
    bytes = random_bytes(2, 50)
    rates = model.chunk_rates(bytes)
    boundaries = model.backbone(model.embeddings(bytes), None)[2]
    assert rates == [float(each.begins.double().mean()) for each in boundaries]
    assert 1 > rates[0] > rates[1] > 0
    start = torch.zeros(2, 50, dtype=torch.bool)
    start[:, ::5] = True
    assert model.chunk_rates(bytes, start)[1] >= 0.2, "each document begins a chunk in each stage"
    flops = [model.flops_per_byte(100, at).inference for at in (None, [1 / 2, 1 / 4], [0.9, 0.8])]
    assert flops[0] == flops[1] < flops[2]
    with pytest.raises(ValueError, match="zip"):
        model.flops_per_byte(100, [0.5])


def test_flops_agree_with_pytorchs_counter():
    """At the chunk rates of these bytes. Attention and MLPs alone: the counter knows no scans."""
    torch.manual_seed(0)
    model = HNetConfig(
        arch_layout=["T1", ["t1", ["T1"], "t1"], "t1"], d_model=[16, 16, 24], d_intermediate=[32, 0, 32],
        attn_cfg={"num_heads": [2] * 3, "rotary_emb_dim": [4] * 3, "window_size": [-1] * 3},
        bytes_per_chunk=[2, 4],
    ).build()  # fmt: skip
    bytes = random_bytes(1, 100)
    rates = model.chunk_rates(bytes)
    # in its plain form PyTorch's attention is matrix products, which the counter knows on every device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(bytes)
    assert model.flops_per_byte(100, rates).inference == pytest.approx(counter.get_total_flops() / 100)


def test_of_mamba_alone_it_carries_its_state_through_a_document():
    torch.manual_seed(0)
    model = HNetConfig(
        arch_layout=["m1", ["m1"], "m1"], d_model=[16, 16], d_intermediate=[0, 0],
        ssm_cfg={"d_state": 4, "headdim": 8}, bytes_per_chunk=[3],
    ).build()  # fmt: skip
    assert model.recurrent and not MODELS["hnet"].build().recurrent
    documents = [random_bytes(length, seed=length).to(torch.uint8).numpy() for length in (40, 23, 60, 7)]
    nats = {}
    for protocol in (Protocol("stateful", 9, batch_size=2), Protocol("disjoint", 64, batch_size=1)):
        batches = list(scored_spans(model, documents, protocol))
        nats[protocol.name] = [
            sum(span.nats.sum() for batch in batches for span in batch if span.document == i)
            for i in range(4)
        ]
    # fp32 sums in another order
    assert nats["stateful"] == pytest.approx(nats["disjoint"], rel=1e-5)


def test_without_stages_of_chunks_it_is_a_plain_stack():
    model = HNetConfig(
        arch_layout=["m1T1"], d_model=[16], d_intermediate=[32], ssm_cfg={"d_state": 4, "headdim": 8},
        attn_cfg={"num_heads": [2], "rotary_emb_dim": [4], "window_size": [-1]}, bytes_per_chunk=[],
    ).build()  # fmt: skip
    bytes = random_bytes(2, 9)
    assert model.chunk_rates(bytes) == []
    assert model.training_loss(bytes, bytes).auxiliary is None
    _, state = model.prefill(bytes[:, :5])
    torch.testing.assert_close(model(bytes[:, 5:], state), model(bytes)[:, 5:], atol=2e-5, rtol=0)


def test_training_moves_chunks_to_their_size_and_the_loss_down():
    """Words of 4 to 6 letters. At first nearly every second byte begins a chunk; every fourth should."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    words = [(97 + torch.randint(0, 26, (4 + i % 3,), generator=generator)).tolist() for i in range(20)]
    model = HNetConfig(
        arch_layout=["m1", ["T1"], "m1"], d_model=[32, 32], d_intermediate=[0, 64],
        ssm_cfg={"d_state": 8, "headdim": 16, "chunk_size": 32},
        attn_cfg={"num_heads": [2, 2], "rotary_emb_dim": [8, 8], "window_size": [-1, -1]},
        bytes_per_chunk=[4], ratio_loss_weight=0.1,
    ).build()  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rates, nats = [], []
    for step in range(200):
        order = torch.randint(0, 20, (4, 16), generator=generator).tolist()
        text = torch.tensor([[byte for i in row for byte in (*words[i], 32)][:65] for row in order])
        loss = model.training_loss(text[:, :-1], text[:, 1:])
        if step == 0 or step >= 180:
            rates.append(model.chunk_rates(text)[0])
        nats.append(loss.nats.mean().item())
        optimizer.zero_grad()
        (loss.nats.mean() + loss.auxiliary).backward()
        optimizer.step()
    assert rates[0] > 0.4
    assert abs(sum(rates[-20:]) / 20 - 0.25) < 0.4 * (rates[0] - 0.25)
    assert sum(nats[-20:]) / 20 < 0.7 < 5 < nats[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch_layout": ["m1", "m1"]}, r"arch_layout is \[encoder, \[..\], decoder\]"),
        ({"arch_layout": [["m1"]]}, r"arch_layout is"),
        ({"arch_layout": ["m1", ["x1"], "m1"]}, "a layout is letters of m, M, t, T"),
        ({"arch_layout": ["m1"]}, "has 1 level, so model.d_model needs 1 value"),
        ({"d_model": [128, 96]}, "d_model must not fall"),
        ({"bytes_per_chunk": [3, 9]}, "bytes_per_chunk needs 1 value, not"),
        ({"learning_rate_multipliers": [1.0]}, "learning_rate_multipliers needs 2 values"),
        ({"d_intermediate": [0, 0]}, "MLPs of stage 1 need a width"),
        ({"d_intermediate": [512, 512]}, r"stage 0 has no MLP .*: set model\.d_intermediate\[0\] to 0"),
        ({"attn_cfg": {"num_heads": [4, 5]}}, "attention in stage 1 of width 192"),
        ({"attn_cfg": {"rotary_emb_dim": [16, 50]}}, "even rotary_emb_dim"),
        ({"ssm_cfg": {"headdim": 100}}, "no whole heads of model.ssm_cfg.headdim=100"),
        ({"ssm_cfg": {"expand": [2]}}, "ssm_cfg.expand needs 2 values"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_is_no_hnet_is_said_in_a_sentence(change, message):
    with pytest.raises(UserError, match=message):
        HNetConfig(**change)


def test_a_layout_may_be_of_tuples():
    config = HNetConfig(arch_layout=("m1", ("T1",), "m1"))
    assert config == HNetConfig(arch_layout=["m1", ["T1"], "m1"])


def test_chunks_of_three_stages_must_grow():
    with pytest.raises(UserError, match="bytes_per_chunk must rise"):
        HNetConfig(
            arch_layout=["m1", ["m1", ["m1"], "m1"], "m1"], d_model=[64] * 3, d_intermediate=[0] * 3,
            attn_cfg={"num_heads": [1] * 3, "rotary_emb_dim": [0] * 3, "window_size": [-1] * 3},
            bytes_per_chunk=[4, 4],
        )  # fmt: skip
