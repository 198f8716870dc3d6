"""The report at the end of a run."""

from pathlib import Path
from typing import Any

import pytest

from mambabyte.runs.summary import read_summary, report, set_summary_aside, write_summary


def summary_of(max_bytes: int | None, **changes: Any) -> dict[str, Any]:
    """The least that a run writes at its end."""
    protocol = {"name": "disjoint", "context_length": 8, "max_bytes": max_bytes}
    return {
        "step": 3,
        "validation": {"bits_per_byte": 2.0, "bytes": 9, "documents": 1, "protocol": protocol},
        "validation_stateful": None,
        "compressors": {},
        "sample": "",
        "parameters": 5,
        "run_dir": "r",
        "loss_curve": "c",
        **changes,
    }


def test_a_model_without_a_stateful_figure_is_reported_without_it() -> None:
    figure = {
        "bits_per_byte": 2.5,
        "bytes": 100,
        "documents": 2,
        "protocol": {"name": "disjoint", "context_length": 32},
    }
    summary = {
        "validation": figure,
        "validation_stateful": {**figure, "bits_per_byte": 2.25},
        "compressors": {"gzip -9": 3.0},
        "sample": "text",
        "run_dir": "runs/x",
        "parameters": 10,
        "step": 1,
        "loss_curve": "runs/x/loss_curve.png",
    }
    both, alone = report(summary), report({**summary, "validation_stateful": None})
    assert "carried through each document: 2.2500" in both
    assert alone == "\n".join(line for line in both.split("\n") if "stateful" not in line)


def test_the_report_shows_no_control_characters() -> None:
    protocol = {"name": "disjoint", "context_length": 8}
    validation = {"bits_per_byte": 2.0, "bytes": 9, "documents": 1, "protocol": protocol}
    summary = {
        "validation": validation,
        "validation_stateful": {**validation, "protocol": {"name": "stateful", "context_length": 8}},
        "compressors": {"gzip -9": 3.0},
        "sample": "a\x1b[2J\nb",
        "run_dir": "runs/x",
    }
    text = report({**summary, "parameters": 5, "step": 2, "loss_curve": "runs/x/loss_curve.png"})
    assert "\x1b" not in text
    assert "  a␛[2J\n  b\n" in text


def test_a_summary_counts_if_it_measured_at_least_what_is_asked_for(tmp_path: Path) -> None:
    assert read_summary(tmp_path, 3) is None
    write_summary(tmp_path, summary_of(None))
    assert read_summary(tmp_path, 3) and read_summary(tmp_path, 3, 0) and read_summary(tmp_path, 3, 50)
    assert read_summary(tmp_path, 4) is None
    write_summary(tmp_path, summary_of(50))
    assert read_summary(tmp_path, 3, 50) and read_summary(tmp_path, 3, 0)
    assert read_summary(tmp_path, 3) is read_summary(tmp_path, 3, 60) is None
    write_summary(tmp_path, summary_of(None, validation=None))
    assert read_summary(tmp_path, 3, 0)
    assert read_summary(tmp_path, 3) is read_summary(tmp_path, 3, 50) is None


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        3,
        {"step": 3},
        summary_of(None, validation="good"),
        summary_of(None, validation={"protocol": []}),
        summary_of(None, compressors=None),
        summary_of(None, sample=7),
    ],
)
def test_a_damaged_summary_is_none_so_that_it_is_measured_again(tmp_path: Path, damaged: Any) -> None:
    write_summary(tmp_path, damaged)
    assert read_summary(tmp_path, 3) is read_summary(tmp_path, 3, 0) is None


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"step": 1e999}', "{"])
def test_a_damaged_summary_is_set_aside_and_not_lost(tmp_path: Path, content: str) -> None:
    set_summary_aside(tmp_path)
    (tmp_path / "summary.json").write_text(content)
    set_summary_aside(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary_damaged.json"]
    assert (tmp_path / "summary_damaged.json").read_text() == content
