"""The figure and the page of benchmarks/scaling.py, from its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from mambabyte.runtime.units import counted

Rows = Sequence[dict[str, Any]]

# How each kind of model keeps its context, by the layer that stands for it.
KINDS = {
    "attention": ("Transformer", "not compressed: every key and value"),
    "LSTM": ("RNN", "two vectors"),
    "convolution": ("CNN", "not compressed: every input in reach of the kernel, here all"),
    "S4D": ("SSM", "16 numbers a channel, by a fixed rule"),
    "selective scan": ("Mamba", "16 numbers a channel, chosen by content"),
}
_PANELS = (
    ("training_seconds", 1e3, "forward and backward, ms"),
    ("step_seconds", 1e6, "one byte more, µs"),
    ("training_bytes", 2**-20, "memory of forward and backward, MiB"),
)
_HEAD = """# Time and memory against length

Mamba's figure 8 (arXiv 2312.00752) on a CPU: one layer, one sequence, fp32. This page is written by
```bash
python benchmarks/scaling.py --out docs/benchmarks
```
and, from the figures in [scaling.csv](scaling.csv) alone, by the same with `--page`. How they are taken is
said at the top of [the script](../../benchmarks/scaling.py); the layers are in
[scaling_layers.py](../../benchmarks/scaling_layers.py), and each takes one byte more by PyTorch's operators.
"""


def page(rows: Rows) -> str:
    """The whole page as Markdown."""
    if not rows:
        return f"{_HEAD}\nNot run yet.\n"
    width, rounds = rows[0]["width"], int(max(row["rounds"] for row in rows))
    once = sorted({row["length"] for row in rows if row["rounds"] < rounds})
    fewer = f", of fewer for some from {once[0]:,} bytes on" if once else ""
    blocks = [
        _HEAD,
        f"{rows[0]['machine']}. {width} channels; medians of {counted(rounds, 'round')}{fewer}.",
        "![time and memory against length](scaling.png)",
        _crossing_in_words(rows),
        _kinds(rows),
        *(_table(rows, what, scale, title) for what, scale, title in _PANELS),
        "A dash: not measured, since the length before took too long or too much memory.",
    ]
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def _crossing_in_words(rows: Rows) -> str:
    found = crossing(rows)
    attention, scan = (values(rows, layer, "training_seconds") for layer in ("attention", "selective scan"))
    if found is None:
        faster = {attention[n] > scan[n] for n in attention.keys() & scan.keys()}
        if not faster:
            return ""
        if len(faster) > 1:
            longest = max(attention.keys() & scan.keys())
            return (
                f"At {longest:,} bytes, the most that both were measured at, attention trains faster than "
                "the selective scan."
            )
        order = "the selective scan trains faster than attention"
        if not faster.pop():
            order = "attention trains faster than the selective scan"
        return f"At every length that both were measured at, {order}."
    return f"From {round(found):,} bytes on, the selective scan trains faster than attention (interpolated)."


def _kinds(rows: Rows) -> str:
    """The table of the kinds of model, at the longest sequence that all of them were measured at."""
    measured = [set(values(rows, layer, "training_seconds")) for layer in KINDS]
    shared = sorted(set.intersection(*measured))
    if not shared:
        return ""
    length = shared[-1]
    lines = [
        f"| | context kept as | bytes kept | training on {length:,} bytes, ms | one byte more, µs |",
        "|---|---|---:|---:|---:|",
    ]
    for layer, (kind, kept) in KINDS.items():
        size = values(rows, layer, "state_bytes")[length]
        cells = [kind, kept, f"{size:,.0f}"]
        for what, scale in (("training_seconds", 1e3), ("step_seconds", 1e6)):
            seconds = values(rows, layer, what)
            cells.append(f"{_shown(scale * seconds[length])}{_growth(seconds, length)}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\nAfter {length:,} bytes; in brackets, times as much as at half of them."


def _growth(found: dict[int, float], length: int) -> str:
    half = found.get(length // 2)
    return f" ({found[length] / half:.1f})" if half else ""


def _table(rows: Rows, what: str, scale: float, title: str) -> str:
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    lines = [f"**{title}**\n", f"| bytes | {' | '.join(layers)} |", f"|---:{'|---:' * len(layers)}|"]
    for length in sorted({row["length"] for row in rows}):
        found = [values(rows, layer, what).get(length) for layer in layers]
        cells = ["-" if value is None else _shown(scale * value) for value in found]
        lines.append(f"| {length:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float) -> str:
    """Three digits."""
    if not math.isfinite(value):
        return "-"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def values(rows: Rows, layer: str, what: str) -> dict[int, float]:
    """A layer's figures by length."""
    return {row["length"]: row[what] for row in rows if row["layer"] == layer}


def crossing(rows: Rows) -> float | None:
    """The length from which on our scan trains faster than attention, interpolated between the measured ones
    on logarithmic axes; None if there is none, or it is below the shortest."""
    attention, scan = (values(rows, layer, "training_seconds") for layer in ("attention", "selective scan"))
    gaps = [(n, math.log(attention[n] / scan[n])) for n in sorted(attention.keys() & scan.keys())]
    found = None
    for (near, before), (far, after) in pairwise(gaps):
        if before <= 0 < after:
            found = near * (far / near) ** (before / (before - after))
        elif after <= 0:  # attention is faster again
            found = None
    return found


def plot(rows: Rows, path: Path) -> None:
    """Time of training and of one byte more, and memory, each against length on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    found = crossing(rows)
    for axes, (what, scale, title) in zip(panels, _PANELS, strict=True):
        for layer in dict.fromkeys(row["layer"] for row in rows):
            points = sorted((n, scale * value) for n, value in values(rows, layer, what).items())
            axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=layer)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(xlabel="bytes in the sequence", title=title)
        axes.grid(alpha=0.3)
    if found is not None:
        panels[0].axvline(found, color="gray", linestyle=":")
        note = f"scan and attention\ncross at {round(found):,}"
        panels[0].annotate(note, (found, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="0.3")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
