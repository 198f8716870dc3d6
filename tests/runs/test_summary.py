"""The report at the end of a run."""

from pathlib import Path

from mambabyte.runs.summary import read_summary, report, write_summary


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
    def write(validation: dict | None) -> None:
        write_summary(tmp_path, {"step": 3, "validation": validation})

    assert read_summary(tmp_path, 3) is None
    write({"protocol": {"max_bytes": None}})
    assert read_summary(tmp_path, 3) and read_summary(tmp_path, 3, 0) and read_summary(tmp_path, 3, 50)
    assert read_summary(tmp_path, 4) is None
    write({"protocol": {"max_bytes": 50}})
    assert read_summary(tmp_path, 3, 50) and read_summary(tmp_path, 3, 0)
    assert read_summary(tmp_path, 3) is read_summary(tmp_path, 3, 60) is None
    write(None)
    assert read_summary(tmp_path, 3, 0)
    assert read_summary(tmp_path, 3) is read_summary(tmp_path, 3, 50) is None
