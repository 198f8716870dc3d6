"""Generation: against forward, and the sampler against what its settings mean."""

from copy import deepcopy

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.generation import Sampler, decode_stream, generate
from mambabyte.generation.sampler import Draws
from mambabyte.models import ByteLM, LSTMConfig, MambaByteConfig
from mambabyte.ops import use_backend


@pytest.fixture(scope="module")
def model() -> ByteLM:
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=32, n_layer=2, d_state=4).build().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    return model


@pytest.mark.parametrize("prompt", [b"ab\xff\x00", b""])
def test_greedy_is_the_argmax_of_forward(model: ByteLM, prompt: bytes) -> None:
    produced = list(generate(model, prompt, 24, Sampler(temperature=0)))
    assert len(produced) == 24
    context = list(prompt or b"\n")
    with torch.no_grad():
        for byte in produced:
            assert byte == int(model(torch.tensor([context]))[0, -1].argmax())
            context.append(byte)
    assert len(set(produced)) > 1


def test_the_seed_decides_the_draws(model: ByteLM) -> None:
    first, same, other = (bytes(generate(model, b"a", 32, Sampler(1.0, seed=seed))) for seed in (3, 3, 4))
    assert first == same != other


def test_no_bytes_asked_for_none_given(model: ByteLM) -> None:
    assert list(generate(model, b"a", 0, Sampler())) == []


def test_generation_leaves_training_mode_alone(model: ByteLM) -> None:
    model.train()
    stream = generate(model, b"a", 8, Sampler())
    next(stream)
    stream.close()
    assert model.training
    model.eval()


def draws(sampler: Sampler, logits: torch.Tensor, count: int = 4000) -> torch.Tensor:
    row = Draws(sampler)
    return torch.bincount(torch.tensor([row(logits.numpy()) for _ in range(count)]), minlength=256) / count


def of_four(probabilities: list[float]) -> torch.Tensor:
    """Probabilities (256,) of which only the first four are not 0."""
    return torch.tensor([*probabilities, *[0.0] * 252])


LOGITS = torch.log(of_four([0.05, 0.5, 0.15, 0.3]))


def test_frequencies_follow_the_temperature() -> None:
    # four standard deviations of a frequency of 4,000 draws are at most 0.032
    assert torch.allclose(draws(Sampler(1.0), LOGITS), LOGITS.exp(), atol=0.032)
    sharpened = LOGITS.exp() ** 2 / (LOGITS.exp() ** 2).sum()
    assert torch.allclose(draws(Sampler(0.5), LOGITS), sharpened, atol=0.032)


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    two = of_four([0, 0.625, 0, 0.375])
    assert torch.allclose(draws(Sampler(1.0, top_k=2), LOGITS), two, atol=0.032)
    assert torch.allclose(draws(Sampler(1.0, top_p=0.79), LOGITS), two, atol=0.032)  # 0.5 + 0.3 reaches it
    three = of_four([0, 0.5, 0.15, 0.3]) / 0.95
    assert torch.allclose(draws(Sampler(1.0, top_p=0.81), LOGITS), three, atol=0.032)
    assert draws(Sampler(1.0, top_k=1), LOGITS, 50)[1] == 1
    assert draws(Sampler(1.0, top_p=1e-9), LOGITS, 50)[1] == 1
    assert torch.allclose(draws(Sampler(1.0, top_k=99), LOGITS), LOGITS.exp(), atol=0.032)


def test_the_coldest_temperature_still_draws_the_likeliest() -> None:
    assert draws(Sampler(1e-320), LOGITS, 10)[1] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.9},
        {"sample": -1},
    ],
)
def test_settings_out_of_range_are_user_errors(settings: dict) -> None:
    with pytest.raises(UserError):
        Sampler(**settings)


def test_text_appears_when_its_bytes_are_complete() -> None:
    stream = "é€𝄞a".encode()
    assert list(decode_stream(stream)) == ["é", "€", "𝄞", "a"]
    assert "".join(decode_stream(b"a\xffb\xe2\x82")) == "a\ufffdb\ufffd"


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_without_probabilities_is_refused(model: ByteLM, temperature: float, value: float) -> None:
    broken = deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[7] = value
    with pytest.raises(UserError, match="gives no probabilities"):
        next(generate(broken, b"a", 8, Sampler(temperature)))


def test_a_byte_may_be_ruled_out() -> None:
    logits = of_four([0.3, 0.0, 0.7, 0.0]).log().numpy()
    assert {Draws(Sampler(1.0, seed=seed))(logits) for seed in range(30)} == {0, 2}


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_rounded_weights_generate_what_their_logits_say(model: ByteLM, weights: str) -> None:
    prompt, sampler = b"ab", Sampler(temperature=0)
    produced = list(generate(model, prompt, 16, sampler, weights))
    with torch.no_grad():
        logits, state = model.prefill(torch.tensor([list(prompt)]))
        step, logits = model.stepper(state, weights), logits[:, -1]
        for byte in produced:
            assert byte == int(logits.argmax())
            logits = step(torch.tensor([byte]))


def test_rounded_weights_are_refused_where_the_fused_step_does_not_serve(model: ByteLM) -> None:
    other = LSTMConfig(d_model=8, n_layer=1).build().eval()
    with pytest.raises(UserError, match="weights=int8 needs a MambaByte model in fp32 on a CPU"):
        next(generate(other, b"a", 8, Sampler(), "int8"))
    with use_backend("reference"), pytest.raises(UserError, match="weights=bf16 needs"):
        next(generate(model, b"a", 8, Sampler(), "bf16"))
    with pytest.raises(UserError, match="weights must be fp32, bf16 or int8, not int4"):
        next(generate(model, b"a", 8, Sampler(), "int4"))


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_rounding_hides_no_broken_weight(model: ByteLM, weights: str) -> None:
    broken = deepcopy(model)
    with torch.no_grad():
        broken.backbone.layers[0].mixer.in_proj.weight[3, 3] = float("nan")
    with pytest.raises(UserError, match="gives no probabilities"):
        list(generate(broken, b"a", 8, Sampler(0), weights))
