import math

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig, config_from_dict
from mambabyte.ops import use_backend
from mambabyte.training.settings import TrainSettings

SMALL = {
    "paper": MambaByteConfig(d_model=32, n_layer=2, d_state=4),
    "rms-tied": MambaByteConfig(d_model=24, n_layer=3, d_state=8, norm="rms", tie_embeddings=True, dt_rank=3),
}


@pytest.fixture(params=SMALL, ids=list(SMALL))
def model(request):
    torch.manual_seed(0)
    return SMALL[request.param].build()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mambabyte_353m", 353_945_600), ("mambabyte_972m", 973_934_080), ("mambabyte_1_6b", 1_606_095_360)],
)
def test_published_parameter_counts(name, parameters):
    config = TrainSettings.compose(f"model={name}").model
    with torch.device("meta"):
        assert config.build().num_parameters() == parameters


def test_flops_per_byte_of_the_353m_model_is_the_published_one():
    config = TrainSettings.compose("model=mambabyte_353m").model
    with torch.device("meta"):
        flops = config.build().flops_per_byte(8192)
    assert flops.inference == pytest.approx(713e6, rel=0.005)  # SpaceByte (arXiv 2404.14408), table 4
    assert flops.training == 3 * flops.inference


def test_initialisation_survives_the_whole_construction(model):
    config = model.config
    for layer in model.backbone.layers:
        mixer = layer.mixer
        step_size = torch.nn.functional.softplus(mixer.dt_proj.bias)
        assert config.dt_min * 0.999 <= step_size.min() and step_size.max() <= config.dt_max * 1.001
        assert step_size.max() / step_size.min() > 5, "log-uniform, not constant"
        expected = torch.arange(1.0, config.d_state + 1).expand(config.d_inner, -1)
        assert torch.allclose(mixer.A_log.exp(), expected, rtol=1e-6)
        assert torch.equal(mixer.D, torch.ones(config.d_inner))
        assert mixer.dt_proj.weight.abs().max() <= config.time_step_rank**-0.5
        assert mixer.A_log._no_weight_decay and mixer.D._no_weight_decay
    assert model.backbone.embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_fresh_model_is_near_uniform(model):
    torch.manual_seed(1)
    bytes = torch.randint(0, 256, (2, 100))
    loss = torch.nn.functional.cross_entropy(model(bytes).flatten(0, 1), bytes.flatten())
    assert loss.item() == pytest.approx(math.log(256), abs=0.3)


def test_causality_by_gradients_at_every_position(model):
    torch.manual_seed(1)
    bytes = torch.randint(0, 256, (1, 12))
    embedded = model.backbone.embedding(bytes).detach().requires_grad_()
    model.backbone.embedding.forward = lambda _: embedded
    logits = model(bytes)
    for t in range(12):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(-1)
        assert (reached[t + 1 :] == 0).all() and (reached[: t + 1] > 0).all()


@pytest.mark.parametrize("length", [1, 2, 37])
def test_step_and_prefill_equal_forward(model, length):
    torch.manual_seed(1)
    bytes = torch.randint(0, 256, (3, length), dtype=torch.uint8)
    whole = model(bytes)
    state, stepped = model.initial_state(3), []
    for t in range(length):
        logits, state = model.step(bytes[:, t], state)
        stepped.append(logits)
    # fp32 sums in another order: 1e-5 of logits of order 1
    assert torch.allclose(torch.stack(stepped, 1), whole, atol=1e-5)
    for cut in range(1, length, 5):
        first, state = model.prefill(bytes[:, :cut])
        second, _ = model.prefill(bytes[:, cut:], state)
        assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-5)
        assert torch.allclose(model(bytes[:, cut:], state), second, atol=1e-6)


def test_packed_documents_equal_each_alone(model):
    torch.manual_seed(1)
    bytes = torch.randint(0, 256, (1, 60))
    start = torch.zeros(1, 60, dtype=torch.bool)
    start[0, [0, 1, 20, 22]] = True
    packed = model(bytes, document_start=start)
    for first, last in [(0, 1), (1, 20), (20, 22), (22, 60)]:
        assert torch.allclose(packed[:, first:last], model(bytes[:, first:last]), atol=1e-5)


def test_backends_agree_with_gradients(model):
    torch.manual_seed(1)
    bytes = torch.randint(0, 256, (2, 70))
    gradients = {}
    for backend in ("reference", "cpu"):
        model.zero_grad()
        with use_backend(backend):
            torch.nn.functional.cross_entropy(
                model(bytes[:, :-1]).flatten(0, 1), bytes[:, 1:].flatten()
            ).backward()
        gradients[backend] = {name: p.grad.clone() for name, p in model.named_parameters()}
    for name, expected in gradients["reference"].items():
        # fp32 in another order through two layers, relative to the parameter's largest gradient
        assert (gradients["cpu"][name] - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-9, name


def test_bf16_autocast_keeps_parameters_and_residual_in_fp32(model):
    torch.manual_seed(1)
    bytes = torch.randint(0, 256, (2, 50))
    seen = []
    model.backbone.norm_f.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(bytes)
    assert seen == [torch.float32]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert (low.float() - model(bytes)).abs().max() < 0.05  # logits of order 1, eight bits


def test_state_dict_has_the_names_of_mamba_ssm(model):
    keys = set(model.state_dict())
    assert {
        "backbone.embedding.weight",
        "backbone.layers.0.norm.weight",
        "backbone.layers.1.mixer.A_log",
        "backbone.layers.0.mixer.D",
        "backbone.layers.0.mixer.in_proj.weight",
        "backbone.layers.0.mixer.conv1d.weight",
        "backbone.layers.0.mixer.conv1d.bias",
        "backbone.layers.0.mixer.x_proj.weight",
        "backbone.layers.0.mixer.dt_proj.weight",
        "backbone.layers.0.mixer.dt_proj.bias",
        "backbone.layers.0.mixer.out_proj.weight",
        "backbone.norm_f.weight",
        "lm_head.weight",
    } <= keys
    assert len([key for key in keys if "layers.0." in key]) == (11 if model.config.norm == "layer" else 10)


def test_config_round_trip_and_refusals():
    config = MambaByteConfig(d_model=48, norm="rms", dt_rank=5)
    assert config_from_dict(config.to_dict()) == config
    for description, message in [
        ({"_target_": "os.system", "command": "true"}, "does not have"),
        ({"_target_": "mambabyte.models.config_from_dict"}, "does not have"),
        ({"_target_": "mambabyte.models.ByteLMConfig"}, "does not have"),
        ({"_target_": "mambabyte.models.MambaByteConfig", "depth": 3}, "no setting model.depth"),
        (
            {"_target_": "mambabyte.models.MambaByteConfig", "d_model": "wide"},
            "model.d_model must be an integer",
        ),
        ({"_target_": "mambabyte.models.MambaByteConfig", "d_model": 0}, "at least 1"),
        ({"_target_": "mambabyte.models.MambaByteConfig", "norm": "batch"}, "one of layer, rms"),
    ]:
        with pytest.raises(UserError, match=message):
            config_from_dict(description)


def test_n_grams_of_a_state_that_was_cast_to_floats_are_the_same():
    model = MambaByteConfig(
        d_model=16, n_layer=1, d_state=4, ngram=3, ngram_buckets=16, ngram_width=4
    ).build()
    _, state = model.prefill(b"abc")
    floats = [tuple(tensor.float() for tensor in part) for part in state]
    assert torch.equal(model.step(b"d", state)[0], model.step(b"d", floats)[0])


def test_an_n_gram_chooses_a_row_of_its_length_by_all_of_its_bytes():
    embedding = MambaByteConfig(d_model=8, ngram=3, ngram_buckets=10**4, ngram_width=2).build().backbone
    rows, _ = embedding.ngram_embedding.rows(torch.tensor([list(b"abcabdxbc")]), None, None)
    pairs, triples = rows[0].T
    assert (pairs < 10**4).all() and (triples >= 10**4).all() and (triples < 2 * 10**4).all()
    assert pairs[2] == pairs[8]  # bc, bc
    assert triples[2] != triples[8]  # abc, xbc
    assert len(set(triples.tolist())) == 9 and len(set(pairs.tolist())) == 7  # ab and bc come twice
