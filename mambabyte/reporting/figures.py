"""Bits per byte against a run's cost in bytes, floating-point operations (the paper's figure 1) and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mambabyte.reporting.comparison import Comparison
from mambabyte.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
_FLOPS = tuple((10.0**power, f"$10^{{{power}}}$") for power in range(24, -1, -3))
_TIME = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Figure:
    """One figure; ``cost`` is what its horizontal axis shows."""

    cost: Literal["bytes", "flops", "time"]
    title: str
    axis: str
    units: tuple[tuple[float, str], ...]

    @property
    def file(self) -> str:
        return f"bits_per_byte_by_{self.cost}.png"

    def x(self, run: Run, trained: float, seconds: float) -> float:
        """The cost of ``trained`` bytes that took ``seconds``."""
        return {"bytes": trained, "flops": trained * run.training_flops_per_byte, "time": seconds}[self.cost]


FIGURES = (
    Figure("bytes", "Bits per byte by bytes trained", "bytes trained ({})", _BYTES),
    Figure("flops", "Bits per byte by training compute", "training FLOPs ({})", _FLOPS),
    Figure("time", "Bits per byte by training time", "time spent on training steps ({})", _TIME),
)


def draw(figure: Figure, comparisons: Sequence[Comparison]) -> Canvas:
    """One panel for each comparison, one colour for each model.

    Lines show validation during training, on a sample; stars the figure over all of them at the end.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure as Canvas

    labels = list(dict.fromkeys(label for comparison in comparisons for label in comparison.labels))
    palette = colormaps["tab10" if len(labels) <= 10 else "tab20"]
    colors = {label: palette(i % palette.N) for i, label in enumerate(labels)}
    canvas = Canvas(figsize=(8, 0.4 + 4.6 * len(comparisons)), layout="constrained")
    panels = canvas.subplots(len(comparisons), squeeze=False)[:, 0]
    for axes, comparison in zip(panels, comparisons, strict=True):
        _panel(axes, figure, comparison, colors)
    canvas.suptitle(figure.title)
    return canvas


def _panel(axes: Axes, figure: Figure, comparison: Comparison, colors: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    lines = [
        [(figure.x(run, trained, seconds), bits) for trained, seconds, bits in run.curve]
        for run in comparison.runs
    ]
    stars = [
        [(figure.x(run, run.bytes_trained, run.seconds), run.validation.bits_per_byte)]
        if run.validation and run.seconds is not None
        else []
        for run in comparison.runs
    ]
    points = [point for line in lines + stars for point in line]
    axes.set_title(comparison.measured_on or "not measured yet", fontsize=8, color="0.35")
    if not points:
        axes.text(0.5, 0.5, "nothing recorded yet", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    furthest = max(x for x, _ in points)
    scale, unit = next((row for row in figure.units if row[0] <= furthest), figure.units[-1])
    for label, line, star in zip(comparison.labels, lines, stars, strict=True):
        x, y = [x / scale for x, _ in line], [bits for _, bits in line]
        axes.plot(x, y, ".-", color=colors[label], linewidth=1.3, markersize=4, alpha=0.85)
        for end, bits in star:
            axes.plot(end / scale, bits, "*", color=colors[label], markersize=10)
    lowest, highest = min(bits for _, bits in points), max(bits for _, bits in points)
    axes.set(xlabel=figure.axis.format(unit), ylabel="validation bits per byte")
    axes.set_yscale("log")
    axes.set_ylim(lowest * 0.96, min(highest, 8.2) * 1.04)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.2)
    handles = {label: Line2D([], [], color=colors[label], marker=".") for label in comparison.labels}
    if any(stars):
        handles["at the end, on all bytes"] = Line2D([], [], color="0.4", marker="*", linestyle="none")
    axes.legend(list(handles.values()), list(handles), fontsize=9)
