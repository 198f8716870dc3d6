"""Bytes drawn by the device's kernels: on a CUDA device, else in Triton's interpreter (started by
tests/ops/step/test_triton_step.py)."""

import importlib
import logging

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.generation import Sampler, generate, generator, stepping
from mambabyte.models import MambaByteConfig, mamba
from tests.ops.interpreter import CUDA, DEVICE, INTERPRETED, here


@pytest.fixture
def drawing():
    pytest.importorskip("triton")
    return importlib.import_module("mambabyte.ops.step.drawing")


@pytest.fixture
def on_device(monkeypatch):
    """`generate` as on a CUDA device."""
    for module in (generator, mamba, stepping):
        monkeypatch.setattr(module, "step_backend", lambda parameter: "triton")
    if INTERPRETED:  # each program takes milliseconds
        monkeypatch.setattr("mambabyte.ops.step.triton.ENOUGH_PROGRAMS", 1)
        monkeypatch.setattr("mambabyte.ops.step.triton.THREAD_BYTES", 2**16)


def build(**more):
    torch.manual_seed(0)
    shape = {"d_model": 16, "n_layer": 1, "d_state": 4, "norm": "rms", **more}
    model = MambaByteConfig(**shape).build().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    return model.to(DEVICE)


def draws(drawing, probabilities, count, seed=0, **settings):
    """`count` draws from the same logits, one for each row, twice."""
    logits = torch.log(torch.tensor(probabilities, device=DEVICE)).expand(count, -1).contiguous()
    symbols = torch.zeros(count, 3, dtype=torch.int64, device=DEVICE)
    position = torch.zeros(count, dtype=torch.int64, device=DEVICE)
    drawn = torch.zeros(4, count, dtype=torch.int16, device=DEVICE)
    settings = {"temperature": 1.0, "top_k": None, "top_p": None, "seed": seed, **settings}
    launch = drawing.draw_launch(logits, symbols, position, drawn, **settings)
    for _ in range(2):
        launch()
    assert (position == 2).all() and not drawn[2:].any()
    assert torch.equal(symbols[:, 1:].T - 1, drawn[:2].long().clamp_min(0)) and not symbols[:, 0].any()
    return drawn[:2].flatten().cpu()


def chi_square(drawn, probabilities):
    """Against these probabilities, of which those that are 0 must not occur."""
    expected = torch.tensor(probabilities) / sum(probabilities)
    found = torch.bincount(drawn.long(), minlength=len(expected))
    assert not found[expected == 0].any()
    found, expected = found[expected > 0], expected[expected > 0] * len(drawn)
    return float(((found - expected) ** 2 / expected).sum())


EIGHT = [0.05, 0.3, 0.02, 0.2, 0.1, 0.15, 0.1, 0.08]


@here
@pytest.mark.parametrize(
    ("settings", "probabilities", "quantile"),  # the 1 - 1e-4 quantile; the seed is fixed
    [
        ({"temperature": 0.5}, [p**2 for p in EIGHT], 29.9),  # 7 degrees of freedom
        ({"top_k": 4}, [0, 0.3, 0, 0.2, 0.1, 0.15, 0, 0], 21.1),  # of two equal ones the first; 3 degrees
        ({"top_p": 0.8, "top_k": 4}, [0, 0.3, 0, 0.2, 0, 0.15, 0, 0], 18.4),  # 0.3 + 0.2 + 0.15 of 0.75; 2
    ],
    ids=["temperature", "top_k", "top_p_of_top_k"],
)
def test_draws_have_the_distribution_of_the_settings(drawing, settings, probabilities, quantile):
    assert chi_square(draws(drawing, EIGHT, 60, **settings), probabilities) < quantile


@here
def test_draws_are_of_the_seed_the_position_and_the_row(drawing):
    first, again, other = (draws(drawing, EIGHT, 15, seed) for seed in (3, 3, 2**32 - 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[:15], first[15:]) and len(set(first[:15].tolist())) > 3
    fewer = draws(drawing, EIGHT, 7, 3)
    assert torch.equal(fewer, torch.cat([first[:7], first[15:22]]))


@here
def test_what_is_certain_is_drawn(drawing):
    likeliest = [0.1, 0.4, 0.4, 0.1]  # of two equal ones the first
    for settings in ({"temperature": 0}, {"temperature": 1e-320}, {"top_k": 1}, {"top_p": 1e-9}):
        expected = {1, 2} if settings == {"temperature": 1e-320} else {1}
        assert set(draws(drawing, likeliest, 12, **settings).tolist()) == expected, settings
    assert set(draws(drawing, [0.5, 0.0, 0.5, 0.0], 20).tolist()) == {0, 2}
    for broken in (torch.nan, torch.inf):
        for temperature in (0, 1.0):
            assert set(draws(drawing, [0.5, broken], 2, temperature=temperature).tolist()) == {-1}


@here
@pytest.mark.parametrize("ngram", [1, 3])
def test_greedy_is_the_argmax_of_forward(drawing, on_device, monkeypatch, ngram):
    monkeypatch.setattr(drawing, "CHUNK", 4)
    model = build(ngram=ngram)
    produced = list(generate(model, b"ab\xff", 11, Sampler(temperature=0)))
    assert len(produced) == 11 and len(set(produced)) > 1
    with torch.no_grad():
        logits = model(torch.tensor([[*b"ab\xff", *produced[:-1]]], device=DEVICE))[0, 2:]
    assert produced == logits.argmax(-1).tolist()


@here
@torch.no_grad()
def test_rows_of_a_batch_are_continued_each_by_its_own_bytes_however_they_are_asked_for(
    drawing, on_device, monkeypatch
):
    monkeypatch.setattr(drawing, "CHUNK", 4)
    model = build(ngram=2)
    prompt = torch.tensor([list(b"abc"), list(b"xyz"), list(b"abc")], device=DEVICE)

    def drawn(rows, *counts):
        logits, state = model.prefill(prompt[:rows])
        stream = model.drawing(state, logits[:, -1], 0.9, None, 0.95, 5)
        return torch.cat([chunk for count in counts for chunk in stream.chunks(count)])

    together = drawn(3, 7)
    assert together.shape == (7, 3) and together.min() >= 0
    assert torch.equal(together, drawn(3, 3, 4))
    assert torch.equal(together[:, :1], drawn(1, 7))
    assert not torch.equal(together[:, 0], together[:, 2])  # the same prompt, other noise


@here
def test_a_model_without_probabilities_is_refused_after_the_bytes_before_them(
    drawing, on_device, monkeypatch
):
    monkeypatch.setattr(drawing, "CHUNK", 4)
    model = build()
    stream, produced = generate(model, b"a", 10, Sampler(0)), []
    produced.append(next(stream))  # when two chunks are under way
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    with pytest.raises(UserError, match="gives no probabilities"):
        produced.extend(stream)
    with pytest.raises(UserError, match="gives no probabilities"):
        next(generate(model, b"a", 8, Sampler(1.0)))


def test_kernels_that_fail_are_told_in_a_line_and_the_steps_go_on(on_device, monkeypatch, caplog):
    model = build()

    def fail(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(mamba.MambaByte, "drawing", fail)
    with caplog.at_level(logging.WARNING, "mambabyte"):
        produced = list(generate(model, b"a", 5, Sampler(0)))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "generating many times slower, as the CUDA graph of a step failed: operation not permitted when "
        "stream is capturing"
    ]
    monkeypatch.undo()
    assert produced == list(generate(model, b"a", 5, Sampler(0)))


def test_rounded_weights_are_obeyed_or_refused(on_device, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no ptxas")

    monkeypatch.setattr(mamba.MambaByte, "drawing", fail)
    model = build()
    with pytest.raises(UserError, match=r"weights=bf16 cannot be used here \(no ptxas\): use weights=fp32"):
        next(generate(model, b"a", 5, Sampler(), "bf16"))
    with pytest.raises(UserError, match="weights=int8 is of the CPU's kernels: use weights=bf16 on CUDA"):
        next(generate(model, b"a", 5, Sampler(), "int8"))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA or INTERPRETED, reason="needs a CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 8, 256])
def test_a_graph_draws_greedily_what_the_eager_step_does(batch):
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=192, n_layer=3, ngram=3, ngram_buckets=64).build().eval().to("cuda")
    model.lm_head.weight.mul_(10)
    prompt = torch.randint(0, 256, (batch, 9), device="cuda")
    logits, state = model.prefill(prompt)
    drawn = torch.cat(list(model.drawing(state, logits[:, -1], 0.0, None, None, 0).chunks(100)))
    assert drawn.shape == (100, batch)
    bytes = torch.cat([prompt, drawn.T.to("cuda", torch.long)], dim=1)
    expected = model.double()(bytes)[:, 8:-1]
    best = expected.max(-1).values
    got = expected.gather(-1, bytes[:, 9:, None])[..., 0]
    torch.testing.assert_close(got, best, rtol=0, atol=1e-3)  # equal but for ties within fp32's rounding
