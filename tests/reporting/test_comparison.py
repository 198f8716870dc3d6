"""Only what was measured alike stands in one table and one panel."""

from __future__ import annotations

import pytest
import yaml

from mambabyte.models import LSTMConfig, TransformerConfig
from mambabyte.reporting import compare
from mambabyte.runs.run import read_run


def comparisons_of(*directories):
    return compare([read_run(directory) for directory in directories])


def test_the_best_comes_first_and_seeds_have_one_label(write_run) -> None:
    other = TransformerConfig(d_model=16, n_layer=1, n_head=2)
    runs = [write_run("b", 2.6, seed=1), write_run("a", 2.4), write_run("none", None, steps=4, model=other)]
    (comparison,), notes = comparisons_of(*runs)
    assert comparison.names == ["a", "b", "none"]
    assert comparison.labels[0] == comparison.labels[1] != comparison.labels[2]
    assert comparison.labels[0].startswith("LSTM ")
    assert (
        "1,404 validation bytes in 3 documents (data 5d7bb8e3), protocol disjoint" in comparison.measured_on
    )
    assert notes == []


@pytest.mark.parametrize(
    "changes",
    [
        {"data_fingerprint": "another"},
        {"bytes": 1403},
        {"precision": "bf16"},
        {"protocol": {"name": "sliding", "context_length": 32, "stride": 16}},
    ],
)
def test_what_was_measured_otherwise_is_kept_apart_and_said(write_run, changes) -> None:
    comparisons, notes = comparisons_of(write_run("a"), write_run("b", **changes), write_run("c"))
    assert [comparison.names for comparison in comparisons] == [["a", "c"], ["b"]]
    assert notes == [
        "These are 2 comparisons, since the runs were not all measured on the same bytes by the same "
        "protocol: figures compare within a table, not between two."
    ]


def test_a_run_of_other_data_that_is_not_measured_stands_apart(write_run) -> None:
    other = write_run("other", None)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("path: corpus", "path: elsewhere"))
    comparisons, notes = comparisons_of(write_run("a"), other)
    assert [comparison.measured_on is None for comparison in comparisons] == [False, True]
    assert len(notes) == 1


def test_curves_over_different_shares_are_said(write_run) -> None:
    _, notes = comparisons_of(write_run("a"), write_run("b", validation_bytes=1000))
    assert len(notes) == 1
    assert "about 200 or 1,000 bytes" in notes[0]


def test_learning_rates_of_one_model_have_labels_of_their_own(write_run) -> None:
    rates = {"low": 1e-4, "high": 3e-3}
    runs = [write_run(name, learning_rate=rate) for name, rate in rates.items()]
    (comparison,), _ = comparisons_of(*runs)
    assert [label.partition(" (")[2] for label in comparison.labels] == [
        "learning_rate=0.0001)",
        "learning_rate=0.003)",
    ]
    assert len(set(comparison.models)) == 1, "the table has a column for it"


def test_what_the_clock_decided_does_not_tell_runs_of_one_time_apart(write_run) -> None:
    runs = [write_run(name, learning_rate=rate) for name, rate in {"low": 1e-4, "high": 3e-3}.items()]
    for steps, run in zip((8, 10), runs, strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["budget"] = {"training_seconds": 10.0}
        config["trainer"]["max_steps"], config["optimizer"]["decay_from"] = steps, steps - 3
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    (comparison,), _ = comparisons_of(*runs)
    assert [label.partition(" (")[2] for label in comparison.labels] == [
        "learning_rate=0.0001)",
        "learning_rate=0.003)",
    ]


@pytest.mark.parametrize("section", ["trainer: {gradient_clip: 3.5, ", "data: {windows: packed, "])
def test_any_setting_that_decides_the_weights_tells_runs_apart(write_run, section: str) -> None:
    runs = [write_run("a"), write_run("b")]
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    name, changed = next(iter(yaml.safe_load(section.rstrip(", ") + "}").items()))
    config[name].update(changed)
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config))
    comparisons, _ = comparisons_of(*runs)
    labels = [label for comparison in comparisons for label in comparison.labels]
    assert len(set(labels)) == 2


def test_runs_that_differ_in_nothing_are_told_apart_by_their_names(write_run) -> None:
    (comparison,), _ = comparisons_of(write_run("seed=0"), write_run("seed=1", seed=1))
    assert comparison.labels == ["seed=0", "seed=1"]
    (alone,), _ = comparisons_of(write_run("alone"))
    assert alone.labels == alone.models


def test_models_of_one_class_and_size_are_distinguished_by_their_settings(write_run) -> None:
    base = {"d_model": 16, "n_layer": 1}
    models = [TransformerConfig(**base, n_head=2), TransformerConfig(**base, n_head=4), LSTMConfig(**base)]
    runs = [write_run(f"{i}", model=model) for i, model in enumerate(models)]
    (comparison,), _ = comparisons_of(*runs)
    two, four, lstm = comparison.labels
    assert (two.endswith("(n_head=2)"), four.endswith("(n_head=4)")) == (True, True)
    assert "(" not in lstm
