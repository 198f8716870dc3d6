"""Runs that end by the clock: budget.training_seconds. A step takes the seconds that the test says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mambabyte import checkpoints
from mambabyte.checkpoints.writing import write
from mambabyte.errors import Interrupted, UserError
from mambabyte.runs.metrics_csv import read_metrics
from mambabyte.training.callbacks.metrics import Metrics
from mambabyte.training.module import ByteLMModule
from mambabyte.training.time_budget import End, decide_end

QUIET = ["callbacks.validate_every=0", "callbacks.sample_every=0", "callbacks.evaluate_bytes=0"]
BY_CLOCK = ["trainer.max_steps=null", "budget.training_seconds=20", "callbacks.log_every=1", *QUIET]
MODELS = ["mambabyte", "megabyte", "transformer", "perceiver_ar", "gated_s4d"]


class PowerCut(Exception):
    pass


@pytest.fixture
def clock(monkeypatch) -> Callable:
    """clock(lambda step: seconds) is what each optimizer step, from 1, takes from then on."""

    def install(cost: Callable[[int], float]) -> None:
        def since_row(metrics: Metrics) -> float:
            return sum(map(cost, range(metrics._row_step + 1, metrics._module.global_step + 1)))

        monkeypatch.setattr(Metrics, "_since_row", since_row)

    install(lambda step: 1.0)
    return install


@pytest.fixture
def end_at(monkeypatch) -> Callable:
    """end_at(5, PowerCut) ends the run once, in the middle of optimizer step 6; SIGTERM does so after it."""

    def install(step: int, how: type[Exception] | signal.Signals) -> None:
        original, done = ByteLMModule.training_step, []

        def training_step(self, batch, batch_index):
            if self.global_step == step and not done:
                done.append(True)
                if not isinstance(how, signal.Signals):
                    raise how
                signal.raise_signal(how)
            return original(self, batch, batch_index)

        monkeypatch.setattr(ByteLMModule, "training_step", training_step)

    return install


def end_of(run_dir: Path) -> End:
    """The end that a finished run kept to, as all of its files say."""
    checkpoint = checkpoints.read(run_dir)
    recorded = yaml.safe_load((run_dir / "config.yaml").read_text())
    for config in (checkpoint.config, recorded):
        assert checkpoint.step == config["trainer"]["max_steps"]
        assert config["optimizer"]["decay_from"] == recorded["optimizer"]["decay_from"]
    return End(recorded["optimizer"]["decay_from"], checkpoint.step)


def rates(run_dir: Path) -> list[float]:
    return [row["learning_rate"] for row in read_metrics(run_dir / "metrics.csv")]


def assert_same_bits(run_dir: Path, other: Path) -> None:
    ours, theirs = checkpoints.read(run_dir), checkpoints.read(other)
    assert ours.step == theirs.step
    assert rates(run_dir) == rates(other)
    assert all(torch.equal(ours.state_dict[name], tensor) for name, tensor in theirs.state_dict.items())
    for number, state in theirs.content["optimizer_states"][0]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(ours.content["optimizer_states"][0]["state"][number][name], tensor)


@pytest.mark.parametrize(
    ("seconds_left", "seconds_per_step", "steps"),
    [
        (30.0, [0.5], 60),
        (30.0, [9.0, 0.5, 0.5, 0.5], 60),  # a busy moment
        (0.7, [0.5], 1),
        (0.1, [0.5], 1),  # at least one
        (-8.0, [20.0], 1),
        (30.0, [0.0], 10**9 - 100),
    ],
    ids=["even", "busy", "rounded", "short", "spent", "no-time"],
)
def test_as_many_steps_as_fit_at_the_usual_speed(seconds_left, seconds_per_step, steps) -> None:
    assert decide_end(100, seconds_left, seconds_per_step) == End(100, 100 + steps)


def test_a_slow_first_step_does_not_decide(start, clock) -> None:
    clock(lambda step: 8.0 if step == 1 else 1.0)
    run_dir = start("eager", *BY_CLOCK, "budget.decay_share=0.999")
    assert end_of(run_dir) == End(3, 13)  # 8 + 12 steps of 1 s


def test_the_rate_is_constant_until_a_share_is_left_and_then_falls_to_the_end(start, clock, capsys) -> None:
    settings = [*BY_CLOCK, "optimizer.final_learning_rate_ratio=0"]
    run_dir = start("timed", *settings)
    assert end_of(run_dir) == End(14, 20)
    expected = [0.5e-2, *[1e-2] * 14, *(1e-2 * left / 6 for left in range(5, 0, -1))]
    assert rates(run_dir) == pytest.approx(expected)
    err = capsys.readouterr().err
    assert ", 20 s of training, 1 x cpu" in err
    assert "mambabyte: the learning rate falls from step 14 to the last, 20\n" in err
    start("timed", *settings)
    assert "is complete at step 20" in capsys.readouterr().err


def test_a_busy_beginning_does_not_decide_how_long_the_run_is(start, clock) -> None:
    clock(lambda step: 4.0 if step <= 2 else 0.5)
    run_dir = start("busy", *BY_CLOCK, "trainer.global_batch_bytes=64")
    assert end_of(run_dir) == End(14, 26)
    assert read_metrics(run_dir / "metrics.csv")[-1]["seconds"] == 20.0


def test_a_shorter_decay_begins_later(start, clock) -> None:
    assert end_of(start("late", *BY_CLOCK, "budget.decay_share=0.1")) == End(18, 20)


def test_a_budget_of_less_than_a_step_takes_two_and_a_short_warm_up_is_said(start, clock, capsys) -> None:
    run_dir = start("short", *BY_CLOCK, "budget.training_seconds=0.5", "optimizer.warmup_steps=4")
    assert end_of(run_dir) == End(1, 2)
    said = "falls from step 1 to the last, 2 and never reaches its peak, since optimizer.warmup_steps=4\n"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "every"), [(PowerCut, 10), (PowerCut, 15), (signal.SIGTERM, 10)], ids=["before", "after", "saved"]
)
def test_a_run_ended_after_the_decision_ends_with_the_same_bits(
    how: Any, every: int, start, clock, end_at
) -> None:
    """From a checkpoint of step 10, before the decision at step 14, or of step 15 or 17, after it."""
    whole = start("whole", *BY_CLOCK)
    saved = f"callbacks.checkpoint_every={every}"
    end_at(16, how)
    with pytest.raises((PowerCut, Interrupted)):
        start("parts", *BY_CLOCK, saved)
    clock(lambda step: 3.0)  # it would be decided otherwise now
    parts = start("parts", *BY_CLOCK, saved)
    assert end_of(parts) == End(14, 20)
    assert_same_bits(parts, whole)
    sittings = json.loads((parts / "sittings.json").read_text())
    assert [sitting["changed"] for sitting in sittings] == [{}, {}]


def test_a_checkpoint_after_the_decision_knows_it_too(start, clock, end_at) -> None:
    whole = start("whole", *BY_CLOCK)
    end_at(16, signal.SIGTERM)
    with pytest.raises(Interrupted):
        start("copied", *BY_CLOCK)
    copied = whole.parent / "copied"
    (copied / "schedule.json").unlink()
    clock(lambda step: 3.0)
    assert_same_bits(start("copied", *BY_CLOCK), whole)


def test_a_run_ended_before_the_decision_goes_on_counting(start, clock, end_at) -> None:
    end_at(8, signal.SIGTERM)
    with pytest.raises(Interrupted):
        start("parts", *BY_CLOCK)
    clock(lambda step: 2.0)
    run_dir = start("parts", *BY_CLOCK)
    # nine steps of one second and three of two; five seconds are left, at the speed of most steps
    assert end_of(run_dir) == End(12, 17)


def test_the_decision_can_be_asked_for_in_steps(start, clock) -> None:
    """Whoever has the configuration of a run by the clock can repeat it, on any machine."""
    whole = start("whole", *BY_CLOCK)
    again = start("again", *QUIET, "callbacks.log_every=1", "trainer.max_steps=20", "optimizer.decay_from=14")
    assert_same_bits(again, whole)


def test_a_number_of_steps_ends_the_run_and_not_the_clock(start, clock, capsys) -> None:
    run_dir = start("numbered", *BY_CLOCK, "trainer.max_steps=30")
    assert checkpoints.read(run_dir).step == 30
    said = "trainer.max_steps=30 ends the run, not budget.training_seconds=20: that needs trainer.max_steps="
    assert said in capsys.readouterr().err
    assert rates(run_dir)[5] > rates(run_dir)[6], "a cosine"


def test_without_steps_and_without_a_budget_there_are_a_thousand(configure) -> None:
    from mambabyte.training.planning.budget import within_budget

    assert within_budget(configure("train")).trainer.max_steps == 1000


def test_more_time_goes_on_and_less_is_refused(start, clock, capsys) -> None:
    start("changed", *BY_CLOCK)
    with pytest.raises(UserError, match=r"has trained for 20 s already, and budget\.training_seconds=10"):
        start("changed", *BY_CLOCK, "budget.training_seconds=10")
    run_dir = start("changed", *BY_CLOCK, "budget.training_seconds=40")
    assert end_of(run_dir) == End(28, 40)
    assert (
        "mambabyte: changed since then: budget.training_seconds (20.0 then, 40.0 now), optimizer.decay_from "
        "(14 then, null now), trainer.max_steps (20 then, null now); so the learning rate goes from 0.0025 "
        "at step 20 to 0.01 at step 21\n"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", '{"decay_from": 14}', '{"decay_from": 9, "max_steps": 9}'])
def test_a_damaged_decision_is_named(content: str, start, clock) -> None:
    run_dir = start("damaged", *BY_CLOCK)
    (run_dir / "schedule.json").write_text(content)
    with pytest.raises(UserError, match=r"schedule\.json' cannot be read .*; remove it"):
        start("damaged", *BY_CLOCK)


@pytest.mark.parametrize("budget", [20.0, None], ids=["measured", "number"])
def test_a_run_of_an_earlier_version_keeps_the_steps_it_began_with(
    budget: float | None, start, clock, end_at, capsys
) -> None:
    """Either measured at its start, or those of the quickstart, whose settings are others now."""
    whole = start("whole", *QUIET, "callbacks.log_every=1")  # 12 steps
    end_at(4, signal.SIGTERM)
    with pytest.raises(Interrupted):
        start("early", *QUIET, "callbacks.log_every=1")
    saved = checkpoints.read(whole.parent / "early")
    content = saved.content
    config = content["mambabyte"]["config"]
    del config["optimizer"]["decay_from"]
    config["budget"] = {"parameters": None, "training_flops": None, "training_seconds": budget}
    write(content, saved.path)
    run_dir = start("early", *BY_CLOCK)
    assert "keeps its 12 steps, which were fixed when it began" in capsys.readouterr().err
    assert_same_bits(run_dir, whole)


@pytest.mark.parametrize("model", MODELS)
def test_time_matched_gives_every_model_its_time(model: str, configure, corpus, tmp_path, clock) -> None:
    from mambabyte.commands import train

    small = ["budget.parameters=null", "model.d_model=16", "model.n_layer=1", "context_length=64"]
    small += ["trainer.global_batch_bytes=256"]
    data = ["data=files", f"data.path={corpus}", "data.validation_fraction=0.2", "data.windows=packed"]
    places = [f"run_dir={tmp_path}/run", f"data.folder={tmp_path}/prepared", "trainer.accelerator=cpu"]
    brief = ["budget.training_seconds=4", "optimizer.warmup_steps=2", *QUIET, "callbacks.sample_bytes=4"]
    train.run(configure("train", "experiment=time_matched", f"model={model}", *small, *data, *places, *brief))
    assert end_of(tmp_path / "run") == End(3, 4)


def test_the_quickstart_ends_by_the_clock_and_takes_a_number(configure) -> None:
    quickstart = configure("train", "experiment=quickstart")
    assert quickstart.trainer.max_steps is None and quickstart.budget.training_seconds > 0
    assert configure("train", "experiment=quickstart", "trainer.max_steps=20").trainer.max_steps == 20
