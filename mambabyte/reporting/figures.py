"""Bits per byte against a run's cost in bytes, floating-point operations (the paper's figure 1) and time; the
accuracy of the runs of a task."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mambabyte.reporting.comparison import Comparison
from mambabyte.runs.loss_curve import literal, smooth
from mambabyte.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
_FLOPS = tuple((10.0**power, f"$10^{{{power}}}$") for power in range(24, -1, -3))
_TIME = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


_LEGEND_INCH = 0.2  # height of an entry
_LEAST_BITS = 1e-4  # of an axis: a task can be solved to 0


@dataclass(frozen=True)
class Figure:
    """One figure; ``cost`` is what its horizontal axis shows, ``value`` the vertical one."""

    cost: Literal["bytes", "flops", "time"]
    title: str
    axis: str
    units: tuple[tuple[float, str], ...]
    value: Literal["bits_per_byte", "accuracy"] = "bits_per_byte"

    @property
    def file(self) -> str:
        return f"{self.value}_by_{self.cost}.png"

    def x(self, run: Run, trained: float, seconds: float) -> float:
        """The cost of ``trained`` bytes that took ``seconds``."""
        return {"bytes": trained, "flops": trained * run.training_flops_per_byte, "time": seconds}[self.cost]


FIGURES = (
    Figure("bytes", "Bits per byte by bytes trained", "bytes trained ({})", _BYTES),
    Figure("flops", "Bits per byte by training compute", "training FLOPs ({})", _FLOPS),
    Figure("time", "Bits per byte by training time", "time spent on training steps ({})", _TIME),
)
ACCURACY_FIGURE = Figure("bytes", "Accuracy by bytes trained", "bytes trained ({})", _BYTES, "accuracy")


def draw(figure: Figure, comparisons: Sequence[Comparison]) -> Canvas | None:
    """A panel for each comparison of which something is recorded, a colour for each label; None without any.
    The accuracy is that of tasks alone.

    Lines show validation during training, on a sample, or where there is none the training windows; stars the
    figure of the table, at the end.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure as Canvas

    drawn = [(comparison, _lines(figure, comparison)) for comparison in comparisons]
    drawn = [(comparison, lines) for comparison, lines in drawn if any(line.points for line in lines)]
    if figure.value == "accuracy":
        drawn = [(comparison, lines) for comparison, lines in drawn if comparison.of_task]
    if not drawn:
        return None
    labels = list(dict.fromkeys(line.label for _, lines in drawn for line in lines))
    palette = colormaps["tab10" if len(labels) <= 10 else "tab20"]
    colors = {label: palette(i % palette.N) for i, label in enumerate(labels)}
    rows = sum(_LEGEND_INCH * len({line.label for line in lines}) for _, lines in drawn)
    canvas = Canvas(figsize=(6.4, 0.4 + 4.4 * len(drawn) + rows), layout="constrained")
    panels = canvas.subplots(len(drawn), squeeze=False)[:, 0]
    for axes, (comparison, lines) in zip(panels, drawn, strict=True):
        _panel(axes, figure, comparison, lines, colors)
    canvas.suptitle(figure.title)
    return canvas


@dataclass(frozen=True)
class _Line:
    """What is drawn of one run: (cost, value) of its curve, and of its figure at the end.

    validated: whether the curve is validation, and not training.
    """

    label: str
    curve: list[tuple[float, float]]
    validated: bool
    star: list[tuple[float, float]]

    @property
    def points(self) -> list[tuple[float, float]]:
        return self.curve + self.star


def _lines(figure: Figure, comparison: Comparison) -> list[_Line]:
    lines = []
    for label, run in zip(comparison.labels, comparison.runs, strict=True):
        points = run.curve or _smoothed(run.training)
        final = run.validation.bits_per_byte if run.validation else None
        if figure.value == "accuracy":
            points, final = run.accuracy_curve, run.validation.accuracy if run.validation else None
        curve = [(figure.x(run, trained, seconds), value) for trained, seconds, value in points]
        star = []
        if final is not None and run.seconds is not None:
            star = [(figure.x(run, run.bytes_trained, run.seconds), final)]
        lines.append(_Line(label, curve, bool(run.curve), star))
    return lines


def _smoothed(training: Sequence[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    bits = smooth(np.array([bits for _, _, bits in training])).tolist()
    return [(trained, seconds, mean) for (trained, seconds, _), mean in zip(training, bits, strict=True)]


def _panel(
    axes: Axes, figure: Figure, comparison: Comparison, lines: Sequence[_Line], colors: dict[str, Any]
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    points = [point for line in lines for point in line.points]
    title = "\n".join(textwrap.wrap(comparison.measured_on or "not measured yet", 80))
    axes.set_title(literal(title), fontsize=8, color="0.35")
    furthest = max(x for x, _ in points)
    scale, unit = next((row for row in figure.units if row[0] <= furthest), figure.units[-1])
    for line in lines:
        color = colors[line.label]
        style = ".-" if line.validated else ":"
        x, y = [x / scale for x, _ in line.curve], [value for _, value in line.curve]
        axes.plot(x, y, style, color=color, linewidth=1.5, markersize=5, alpha=0.85)
        for end, value in line.star:
            axes.plot(end / scale, value, "*", color=color, markersize=11)
    axes.set_xlabel(figure.axis.format(unit))
    axes.set_xlim(left=0)
    if figure.value == "accuracy":
        axes.set(ylabel="share of answers right", ylim=(-0.03, 1.03))
    else:
        lowest = max(_LEAST_BITS, min(bits for _, bits in points))
        highest = max(lowest, *(bits for _, bits in points))
        axes.set_ylabel("bits per answer" if comparison.of_task else "bits per byte")
        axes.set_yscale("log")
        axes.set_ylim(lowest * 0.96, min(highest, 8.2) * 1.04)
        axes.yaxis.set_major_locator(MaxNLocator(8))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.2)
    handles = {line.label: Line2D([], [], color=colors[line.label]) for line in lines if line.points}
    if any(line.curve and line.validated for line in lines):
        handles["validation during training, a sample"] = Line2D([], [], color="0.4", marker=".")
    if any(line.curve and not line.validated for line in lines):
        handles["training, where nothing was validated"] = Line2D([], [], color="0.4", linestyle=":")
    if any(line.star for line in lines):
        handles["validation at the end"] = Line2D([], [], color="0.4", marker="*", ls="none")
    names = [literal("\n".join(textwrap.wrap(label, 70))) for label in handles]
    below = (0.5, -0.14)  # in units of the panel
    axes.legend(
        [*handles.values()], names, fontsize=9, loc="upper center", bbox_to_anchor=below, frameon=False
    )
