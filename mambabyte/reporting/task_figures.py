"""Which mixers solve which synthetic task: the accuracies of many runs as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mambabyte.runs.loss_curve import literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class TaskResult:
    """The ``accuracy`` of one run at ``task``, where guessing gives ``chance``; ``block`` is what is around
    the mixer."""

    task: str
    mixer: str
    block: str
    accuracy: float
    chance: float


def draw_split(results: Sequence[TaskResult]) -> Canvas:
    """A panel for each task, in it a group of bars for each mixer, and in that a bar for each block.

    Runs alike in all three, as of several seeds, are one bar, their mean, with a dot for each.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure as Canvas

    tasks, mixers, blocks = (
        list(dict.fromkeys(getattr(each, name) for each in results)) for name in ("task", "mixer", "block")
    )
    palette, width = colormaps["tab10"], 0.8 / len(blocks)
    canvas = Canvas(figsize=(1.5 + 1.1 * len(mixers), 0.6 + 2.6 * len(tasks)), layout="constrained")
    panels = canvas.subplots(len(tasks), sharex=True, squeeze=False)[:, 0]
    for axes, task in zip(panels, tasks, strict=True):
        for place, mixer in enumerate(mixers):
            found: dict[str, list[float]] = {}
            for each in results:
                if (each.task, each.mixer) == (task, mixer):
                    found.setdefault(each.block, []).append(100 * each.accuracy)
            for number, (block, runs) in enumerate(found.items()):
                x, color = place + (number - (len(found) - 1) / 2) * width, palette(blocks.index(block) % 10)
                bar = axes.bar(x, sum(runs) / len(runs), 0.9 * width, color=color, label=block)
                axes.bar_label(bar, fmt="%.0f", fontsize=8, padding=4)
                if len(runs) > 1:
                    axes.plot([x] * len(runs), runs, ".", color="black", markersize=4)
        chance = next(each.chance for each in results if each.task == task)
        axes.axhline(100 * chance, color="gray", linestyle=":", label="guessing")
        axes.set(title=literal(task), ylabel="answers right, in %", ylim=(0, 115))
        axes.set_yticks(range(0, 101, 25))
    panels[-1].set_xticks(range(len(mixers)), [mixer.replace("_", "\n") for mixer in mixers])
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    canvas.legend([*handles.values()], [*handles], loc="outside lower center", ncols=len(handles))
    return canvas
