"""What a longer context gains: the CSV, the figure and the section of benchmarks/long_context.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csv_rows import read_rows, write_rows
from tournament_space import MODELS

Rows = Sequence[dict[str, Any]]
LENGTHS, LENGTHS_FIGURE = "long_context.csv", "long_context.png"
LENGTH_COLUMNS = (
    *("corpus", "model", "seed", "trained_at", "recurrent", "context_length", "bytes"),
    *("bits_per_byte", "machine", "command"),
)
_WORDS = ("corpus", "model", "machine", "command")
_OURS = "mambabyte"


def curves(rows: Rows) -> dict[str, list[tuple[int, float]]]:
    """For each model (context, bits per byte), ascending; several seeds are averaged."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["bits_per_byte"] is not None:
            of_model = found.setdefault(row["model"], {})
            of_model.setdefault(row["context_length"], []).append(row["bits_per_byte"])
    return {
        model: [(n, sum(bits) / len(bits)) for n, bits in sorted(points.items())]
        for model, points in found.items()
    }


def lengths_section(rows: Rows, link: str) -> str:
    """The section of the page; empty without rows."""
    found = curves(rows)
    if not found:
        return ""
    contexts = sorted({row["context_length"] for row in rows})
    corpus, measured = rows[0]["corpus"], max(row["bytes"] or 0 for row in rows)
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    lines = [
        "## Long context\n",
        f"Bits per byte of the first {measured:,} validation bytes of {corpus}, which differ from the mean "
        "of the split, in windows of each length (`disjoint`), by the best points of equal compute, "
        f"seed {seeds}. The last column is the gain from the first to the best. A recurrent model carries "
        "its state through a window. None has been trained on windows longer than the context it chose: "
        "what a model without a state loses beyond it says that and no more. A dash: the tournament gives "
        "the model only as many positions as the context it chose.\n",
        f"![bits per byte against the context]({link}{LENGTHS_FIGURE})\n",
        f"| model | trained at | {' | '.join(f'{n:,}' for n in contexts)} | gain |",
        f"|---|---:|{'---:|' * len(contexts)}---:|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        points = found.get(model, [])
        bits = dict(points)
        cells = [f"{bits[n]:.3f}" if n in bits else "-" for n in contexts]
        recurrent = bool(mine[0]["recurrent"])
        gain = f"{points[0][1] - min(bits.values()):.3f}" if len(points) > 1 else ""
        name = f"{MODELS[model].name}{', state carried' if recurrent else ''}"
        lines.append(f"| {name} | {mine[0]['trained_at']:,} | {' | '.join(cells)} | {gain} |")
    return "\n".join(lines)


def draw_lengths(rows: Rows, folder: Path) -> None:
    """Each model's bits per byte by the context; dashed beyond that of its training if it has no state."""
    found = curves(rows)
    if not found:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    seen: list[float] = []  # within the contexts of training: what breaks down beyond them leaves the axes
    for number, (model, description) in enumerate(MODELS.items()):
        points = found.get(model)
        if not points:
            continue
        mine = next(row for row in rows if row["model"] == model)
        known = [each for each in points if mine["recurrent"] or each[0] <= mine["trained_at"]] or points[:1]
        style = {"color": f"C{number}", "linewidth": 2.5 if model == _OURS else 1.3}
        label = f"{description.name}{', state carried' if mine['recurrent'] else ''}"
        seen += [bits for _, bits in known]
        axes.plot(*zip(*known, strict=True), "o-", markersize=4, label=label, **style)
        beyond = points[len(known) - 1 :]
        if len(beyond) > 1:
            axes.plot(*zip(*beyond, strict=True), "o--", markersize=3, alpha=0.5, **style)
    spread = max(seen) - min(seen)
    axes.set_ylim(min(seen) - 0.1 * spread - 0.02, max(seen) + 0.8 * spread + 0.02)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="context, bytes",
        ylabel="bits per byte",
        title="dashed: longer than in training, without a state",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(folder / LENGTHS_FIGURE, dpi=130)


def write_lengths(rows: Rows, path: Path) -> None:
    write_rows(rows, LENGTH_COLUMNS, path)


def read_lengths(path: Path) -> list[dict[str, Any]]:
    """The rows of a long_context.csv; none if there is no such file.

    Raises:
        UserError: as `read_rows`.
    """
    whole = set(LENGTH_COLUMNS) - {*_WORDS, "bits_per_byte"}
    return read_rows(path, _WORDS, whole, LENGTH_COLUMNS)
