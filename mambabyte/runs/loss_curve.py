"""loss_curve.png: a run's bits per byte, with compressors for comparison."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def plot_loss_curve(
    rows: Sequence[Mapping[str, Any]],
    compressors: Mapping[str, float],
    final: float | None,
    title: str,
    path: Path,
) -> None:
    """Draw training (raw and smoothed) and validation bits per byte over bytes seen; compressors are lines.

    Args:
        rows: of metrics.csv.
        final: validation bits per byte at the end, if measured.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if not math.isnan(row["bits_per_byte"])]  # all steps skipped
    seen = np.array([row["bytes"] for row in rows]) / 1e6
    training = np.array([row["bits_per_byte"] for row in rows])
    column = "validation_bits_per_byte"
    validated = [(row["bytes"] / 1e6, row[column]) for row in rows if row[column]]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    if len(rows):
        axes.plot(seen, training, color="tab:blue", alpha=0.25, linewidth=1)
        axes.plot(seen, smooth(training), color="tab:blue", label="training")
        if final is not None:
            label = f"validation, at the end ({final:.3f})"
            axes.plot(seen[-1], final, "*", color="tab:red", markersize=12, label=label)
    if validated:
        label = "validation, a sample"
        axes.plot(*zip(*validated, strict=True), "o-", color="tab:orange", markersize=4, label=label)
    for (name, value), style in zip(compressors.items(), (":", "--", "-."), strict=False):
        axes.axhline(value, color="gray", linestyle=style, linewidth=1, label=f"{name} ({value:.3f})")
    ends = [] if final is None else [final]
    lowest = 0.85 * min([*ends, *compressors.values(), *training], default=1.0)
    axes.set(xlabel="MB seen", ylabel="bits per byte", title=literal(title))
    axes.set_yscale("log", base=2)
    axes.set_ylim(lowest, 8.5)
    axes.set_yticks([tick for tick in (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8) if tick > lowest])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(path, dpi=120)


def literal(text: str) -> str:
    """``text`` as matplotlib shows it character by character: two dollars would enclose a formula."""
    return text.replace("$", r"\$")


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a twentieth of the values, with bias correction."""
    weight = 1 - 1 / (1 + len(values) / 20)
    averages, total, total_weight = [], 0.0, 0.0
    for value in values:
        total, total_weight = weight * total + value, weight * total_weight + 1
        averages.append(total / total_weight)
    return np.array(averages)
