"""The figures and the page of benchmarks/synthetic_tasks.py, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from mambabyte.evaluation.studies.accuracy_by_length import LengthAccuracy, plot_accuracy_by_length
from mambabyte.reporting.task_figures import TaskResult, draw_split

Rows = Sequence[dict[str, Any]]

# Mamba's table 1 (arXiv 2312.00752): selective copying, 4,096 bytes, in %.
PUBLISHED = {
    ("s4", "plain"): 18.3, ("s6", "plain"): 97.0,
    ("s4", "h3"): 57.0, ("s6", "h3"): 99.7,
    ("s4", "mamba"): 56.4, ("s6", "mamba"): 99.8,
}  # fmt: skip
_HEAD = """# Synthetic tasks: which mixers solve which

[docs/data.md](../data.md#synthetic-tasks) says what the tasks are. These are the sizes for a CPU: `experiment=copying_small`,
`selective_copying_small` and `induction_heads_small`, two layers of width 64. This page, its figures and the CSVs are written by
```bash
python benchmarks/synthetic_tasks.py --out docs/benchmarks
```
and, from the CSVs alone, by the same with `--page`. The figures of every run, with its command, are in
[synthetic_tasks.csv](synthetic_tasks.csv), those by length in [synthetic_tasks_lengths.csv](synthetic_tasks_lengths.csv).
"""  # noqa: E501, as these are lines of the page


def page(results: Rows, lengths: Rows) -> str:
    """The whole page as Markdown."""
    if not results:
        return f"{_HEAD}\nNot run yet.\n"
    blocks = [
        _HEAD,
        _machine(results),
        "## Copying and selective copying\n\n![accuracy by mixer](synthetic_tasks.png)",
        _copying(results),
    ]
    if lengths:
        blocks += [
            "## Induction heads, by length\n\n![accuracy by length](synthetic_tasks_lengths.png)",
            _by_length(lengths),
        ]
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def _machine(results: Rows) -> str:
    seeds = sorted({int(row["seed"]) for row in results})
    seconds = sum(row["training_seconds"] for row in results)
    count = f"{len(results)} runs, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    machines = "; ".join(dict.fromkeys(row["machine"] for row in results))
    return f"{machines}. {count}; {seconds / 60:.0f} minutes of training on one core each."


def _copying(results: Rows) -> str:
    lines = [
        "Answers right, and sequences with all answers right, in % (means over the seeds); published: "
        "Mamba's table 1, answers, at 4,096 bytes and 400,000 steps.\n",
        "| mixer | block | parameters | copying | sequences | selective copying | sequences | published |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in dict.fromkeys(_kind(row) for row in results if row["task"] != "induction_heads"):
        mine = [row for row in results if _kind(row) == kind]
        cells = [
            _percent([row[what] for row in mine if row["task"] == task])
            for task in ("copying", "selective_copying")
            for what in ("accuracy", "sequence_accuracy")
        ]
        published = PUBLISHED.get(kind[:2], "") if kind[2] == "none" else ""
        parameters = f"{int(mine[0]['parameters']):,}"
        lines.append(f"| {kind[0]} | {_around(kind)} | {parameters} | {' | '.join(cells)} | {published} |")
    steps = {row["task"]: row["steps"] for row in results}
    trained = (f"{task.replace('_', ' ')} for {int(n):,} steps" for task, n in steps.items())
    return "\n".join(
        [*lines, "", f"Guessing: {100 * results[0]['chance']:.1f} %. Trained: {', '.join(trained)}."]
    )


def _by_length(lengths: Rows) -> str:
    columns = sorted({int(row["length"]) for row in lengths})
    lines = [
        "Answers right, in % (means over the seeds):\n",
        f"| mixer | block | {' | '.join(f'{length:,}' for length in columns)} |",
        f"|---|---|{'---:|' * len(columns)}",
    ]
    for kind in dict.fromkeys(map(_kind, lengths)):
        mine = [row for row in lengths if _kind(row) == kind]
        cells = [_percent([row["accuracy"] for row in mine if row["length"] == n]) for n in columns]
        lines.append(f"| {kind[0]} | {_around(kind)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "A dash is a length that was not measured."])


def _kind(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["mixer"], row["block"], row["mlp"]


def _around(kind: tuple[str, str, str]) -> str:
    return kind[1] if kind[2] == "none" else f"{kind[1]}, MLP {kind[2]}"


def _percent(shares: Sequence[float]) -> str:
    return f"{100 * mean(shares):.1f}" if shares else "-"


def draw(results: Rows, lengths: Rows, folder: Path) -> None:
    """The split, and the accuracy by length, where there is something to draw."""
    split = [
        TaskResult(row["task"].replace("_", " "), row["mixer"], row["block"], row["accuracy"], row["chance"])
        for row in sorted(results, key=lambda row: row["task"])
        if row["task"] != "induction_heads"
    ]
    if split:
        draw_split(split).savefig(folder / "synthetic_tasks.png", dpi=130)
    if lengths:
        curves: dict[str, list[LengthAccuracy]] = {}
        for row in lengths:
            label = f"{row['mixer']} ({_around(_kind(row))})"
            label += f", seed {int(row['seed'])}" if len({each["seed"] for each in lengths}) > 1 else ""
            point = LengthAccuracy(int(row["length"]), int(row["sequences"]), row["accuracy"], 0.0)
            curves.setdefault(label, []).append(point)
        chance = next(row["chance"] for row in results if row["task"] == "induction_heads")
        path = folder / "synthetic_tasks_lengths.png"
        plot_accuracy_by_length(curves, _training_length(), chance, path)


def _training_length() -> int:
    """That of induction_heads_small."""
    from mambabyte.training.settings import TrainSettings

    return TrainSettings.compose("experiment=induction_heads_small").context_length
