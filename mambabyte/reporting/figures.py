"""Bits per byte against a run's cost in bytes, floating-point operations (the paper's figure 1) and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mambabyte.reporting.comparison import Comparison
from mambabyte.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
_FLOPS = tuple((10.0**power, f"$10^{{{power}}}$") for power in range(24, -1, -3))
_TIME = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_Color = tuple[float, float, float, float]


@dataclass(frozen=True)
class Figure:
    """One figure; ``x`` maps a run, its bytes trained and its seconds to the cost on the axis."""

    file: str
    title: str
    axis: str
    units: tuple[tuple[float, str], ...]
    x: Callable[[Run, float, float], float]


FIGURES = (
    Figure(
        "bits_per_byte_by_bytes.png",
        "Bits per byte by bytes trained",
        "bytes trained ({})",
        _BYTES,
        lambda run, trained, seconds: trained,
    ),
    Figure(
        "bits_per_byte_by_flops.png",
        "Bits per byte by training compute",
        "training FLOPs ({})",
        _FLOPS,
        lambda run, trained, seconds: trained * run.training_flops_per_byte,
    ),
    Figure(
        "bits_per_byte_by_time.png",
        "Bits per byte by training time",
        "time spent on training steps ({})",
        _TIME,
        lambda run, trained, seconds: seconds,
    ),
)


def draw(figure: Figure, comparisons: Sequence[Comparison]) -> Canvas:
    """One panel for each comparison, one colour for each model.

    Lines show validation during training, on its first bytes; stars the figure over all of them at the end.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    labels = list(dict.fromkeys(label for comparison in comparisons for label in comparison.labels))
    colors = dict(zip(labels, _colors(len(labels)), strict=True))
    canvas = Canvas(figsize=(8, 0.4 + 4.6 * len(comparisons)), layout="constrained")
    FigureCanvasAgg(canvas)
    panels = canvas.subplots(len(comparisons), squeeze=False)[:, 0]
    for axes, comparison in zip(panels, comparisons, strict=True):
        _panel(axes, figure, comparison, colors)
    canvas.suptitle(figure.title)
    return canvas


def _panel(axes: Axes, figure: Figure, comparison: Comparison, colors: dict[str, _Color]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    lines = {
        name: [(figure.x(run, trained, seconds), bits) for trained, seconds, bits in run.curve]
        for name, run in zip(comparison.names, comparison.runs, strict=True)
    }
    stars = {
        name: (figure.x(run, run.bytes_trained, run.seconds), run.validation.bits_per_byte)
        for name, run in zip(comparison.names, comparison.runs, strict=True)
        if run.validation and run.seconds is not None
    }
    points = [point for line in lines.values() for point in line] + list(stars.values())
    axes.set_title(comparison.measured_on or "not measured yet", fontsize=8, color="0.35")
    if not points:
        axes.text(0.5, 0.5, "nothing recorded yet", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    scale, unit = next(
        (size, name) for size, name in figure.units if max(x for x, _ in points) >= size or size == 1
    )
    for label, name in zip(comparison.labels, comparison.names, strict=True):
        x, y = [x / scale for x, _ in lines[name]], [bits for _, bits in lines[name]]
        axes.plot(x, y, ".-", color=colors[label], linewidth=1.3, markersize=4, alpha=0.85)
        if name in stars:
            end, bits = stars[name]
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
    if stars:
        handles["at the end, on all bytes"] = Line2D([], [], color="0.4", marker="*", linestyle="none")
    axes.legend(list(handles.values()), list(handles), fontsize=9)


def _colors(number: int) -> list[_Color]:
    from matplotlib import colormaps

    palette = colormaps["tab10" if number <= 10 else "tab20"]
    return [palette(i % palette.N) for i in range(number)]
