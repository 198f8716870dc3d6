"""The report at the end of a run."""

from mambabyte.runs.summary import report


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
