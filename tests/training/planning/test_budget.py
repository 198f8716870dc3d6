"""Budgets: every model meets the count and the compute it is given, and a run keeps to them."""

import pytest
import torch

from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.training.planning.budget import within_budget

MODELS = ["mambabyte", "transformer", "megabyte", "perceiver_ar", "gated_s4d", "lstm", "cnn"]
MODELS += ["spacebyte", "spacebyte_fixed", "mamba2", "hybrid"]


def build(settings):
    with torch.device("meta"):
        return settings.model.build()


@pytest.mark.parametrize("choice", MODELS)
@pytest.mark.parametrize("parameters", [1.75e6, 9e6])
def test_compute_matched_gives_every_model_the_same(configure, choice, parameters):
    overrides = ["experiment=compute_matched", f"model={choice}", f"budget.parameters={parameters}"]
    solved = within_budget(configure("train", *overrides))
    model = build(solved)
    assert model.num_parameters() == pytest.approx(parameters, rel=0.05)
    spent = model.flops_per_byte(1024).training * 8192 * solved.trainer.max_steps
    assert spent == pytest.approx(4e13, rel=0.02)
    assert within_budget(solved) == solved, "solving again, as a resumed run does, changes nothing"


@pytest.mark.parametrize("choice", MODELS)
def test_parameter_matched_gives_every_model_the_same_bytes(configure, choice):
    solved = within_budget(configure("train", "experiment=parameter_matched", f"model={choice}"))
    assert build(solved).num_parameters() == pytest.approx(1.75e6, rel=0.05)
    assert solved.trainer.max_steps == 450


def test_a_much_smaller_budget_keeps_a_layout_whole(configure):
    solved = within_budget(configure("train", "model=hybrid", "budget.parameters=1e5"))
    assert build(solved).num_parameters() == pytest.approx(1e5, rel=0.05)
    assert solved.model.n_layer >= 8


def test_without_a_budget_nothing_changes(configure):
    settings = configure("train", "experiment=quickstart")
    assert within_budget(settings) == settings


def test_a_run_trains_the_steps_of_its_budget_and_resumes(start):
    budget = ["budget.parameters=5e4", "budget.training_flops=3e8"]
    run_dir = start("matched", "model=lstm", *budget)
    first = checkpoints.read(run_dir)
    model = first.build_model()
    assert first.step == round(3e8 / (256 * model.flops_per_byte(32).training)) > 3
    assert first.config["budget"]["training_flops"] == 3e8
    start("matched", "model=lstm", "budget.parameters=5e4", "budget.training_flops=6e8")
    assert checkpoints.read(run_dir).step == pytest.approx(2 * first.step, abs=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.training_flops=1"], "less than one step's"),
        (["budget.parameters=1000"], "nearly budget.parameters=1,000 .* or change model.n_layer"),
        (["model.ngram=2", "budget.parameters=1000"], "or change model.ngram_buckets"),
        (["model.ngram_width=7"], "model.ngram_width=7 would be ignored"),
        (["model=hnet", "budget.parameters=1e6"], "HNetConfig has others: set the sizes of its stages"),
        (["budget.parameters=many"], r"budget\.parameters must be a number or null"),
        (["budget.training_flops=1e9", "budget.training_seconds=60"], "set one of them to null"),
    ],
)
def test_refusals(configure, overrides, message):
    with pytest.raises(UserError, match=message):
        within_budget(configure("train", *overrides))


@pytest.mark.parametrize("choice", MODELS)
def test_a_much_larger_budget_keeps_the_proportions(configure, choice):
    small = build(configure("train", f"model={choice}")).config
    solved = within_budget(configure("train", "experiment=compute_matched_60m", f"model={choice}"))
    large = build(solved)
    assert large.num_parameters() == pytest.approx(60e6, rel=0.05)
    assert large.config.n_layer > small.n_layer
    proportion = (large.config.d_model / large.config.n_layer) / (small.d_model / small.n_layer)
    assert 0.7 < proportion < 1.4  # small models have few layers to round
    if getattr(small, "n_head", None):
        assert 64 <= large.config.d_model / large.config.n_head <= 128
    assert within_budget(solved) == solved
