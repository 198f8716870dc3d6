"""loss_curve.png of a task's run: the accuracy, and the bits per answer below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambabyte.runs.loss_curve import literal
from mambabyte.runs.metrics_csv import ACCURACY

_NAMES = ("answers", "sequences with all answers right")


def plot_accuracy_curve(rows: Sequence[Mapping[str, Any]], chance: float, title: str, path: Path) -> None:
    """Draw the accuracy on held-out sequences, per answer and per sequence, and the training loss over steps.

    Args:
        rows: of metrics.csv.
        chance: the accuracy of guessing, drawn as a line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 1))
    for column, name in zip(ACCURACY, _NAMES, strict=True):
        points = [(row["step"], 100 * row[column]) for row in rows if row.get(column) is not None]
        if points:
            above.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
    above.axhline(100 * chance, color="gray", linestyle=":", label=f"guessing ({100 * chance:.1f} %)")
    above.set(ylabel="right, in %", ylim=(-3, 103), title=literal(title))
    above.legend()
    losses = [(row["step"], row["bits_per_byte"]) for row in rows if not math.isnan(row["bits_per_byte"])]
    if losses:
        below.plot(*zip(*losses, strict=True), color="tab:gray")
    below.set(xlabel="steps", ylabel="training bits per answer", ylim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.2)
    figure.savefig(path, dpi=120)
