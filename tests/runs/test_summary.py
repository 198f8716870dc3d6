"""The report of a model whose state grows: no stateful figure, and nothing said of one."""

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
