"""The CSVs, the figure and the page of benchmarks/tournament.py."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from csv_rows import read_rows, write_rows
from tournament_lengths import LENGTHS, draw_lengths, lengths_section, read_lengths
from tournament_space import MODELS, SIZES

Rows = Sequence[dict[str, Any]]
RESULTS, CURVES, FIGURE = "tournament.csv", "tournament_curves.csv", "tournament.png"
RESULT_COLUMNS = (
    *("size", "corpus", "model", "kind", "number", "seed", "width", "depth", "learning_rate"),
    *("batch_bytes", "context_length", "parameters", "steps", "bytes_trained", "training_flops"),
    *("measured_flops", "training_seconds", "bits_per_byte", "stateful_bits_per_byte", "outcome"),
    *("machine", "command"),
)
CURVE_COLUMNS = ("corpus", "model", "seed", "training_flops", "bits_per_byte")
_WORDS = ("size", "corpus", "model", "kind", "outcome", "machine", "command")
_WHOLE = ("number", "seed", "width", "depth", "batch_bytes", "context_length", "parameters", "steps")
_KINDS = {"compute": "equal compute", "time": "equal time"}
_BUDGETS = (  # of a kind of run: the option of tournament.py and the setting in the run's command
    ("trial", "trial-flops", "training_flops"),
    ("compute", "final-flops", "training_flops"),
    ("time", "final-seconds", "training_seconds"),
)
_RANGES = (  # of the search space: the name on the page, the column, the field of `Size`
    ("width", "width", "widths"),
    ("depth", "depth", "depths"),
    ("bytes a step, one window or more", "batch_bytes", "batch_bytes"),
    ("context", "context_length", "context_lengths"),
)
_OURS = "mambabyte"
_ROOT = Path(__file__).absolute().parents[1]
_TITLE = "# A tournament of byte-level models on equal terms"
_CLAIMS = """Papers claim that at equal compute MambaByte is ahead of gated S4D and MegaByte, and these of Transformers and
Perceiver AR ([arXiv 2401.13660](https://arxiv.org/abs/2401.13660), tables 1 and 2, figure 1), and that H-Net is ahead of SpaceByte
([arXiv 2507.07955](https://arxiv.org/abs/2507.07955), table 2). Here these models and an LSTM are tuned and trained on the same terms."""  # noqa: E501
_HOW = """This page is written by
```bash
python benchmarks/tournament.py --books FOLDER --out docs/benchmarks{page}{options}
python benchmarks/long_context.py --out docs/benchmarks{page}
```
and, from the figures in [{results}]({link}{results}) alone, by the first with `--page`. FOLDER has parquet files in PG19's
schema. The search space is in [tournament_space.py]({root}benchmarks/tournament_space.py), the search in
[tournament_search.py]({root}benchmarks/tournament_search.py).{changed}"""  # noqa: E501, as these are lines of the page
_CHANGED = " The ranges have changed since these runs, so the commands make others now."
_GPU = """## On a GPU
The same with models of some 60 million parameters on PG19 and `data=code`, and of some 350 million (*not run yet*):
```bash
python benchmarks/tournament.py --size 60m --processes 1 --runs runs/tournament_60m --out OUT
python benchmarks/tournament.py --size 350m --processes 1 --runs runs/tournament_350m --out OUT
```
They tune and compare in the same way, with the ranges and budgets of their row in
[tournament_space.py]({root}benchmarks/tournament_space.py); `--books FOLDER` trains on a copy of PG19's parquet files."""  # noqa: E501
_LIMITS = """## What this shows, and what it does not
- Every model had the same number of trials over the same ranges at the same compute, begun at the same points, and its best point
  the same new seeds. What a model alone has (MambaByte's states, MegaByte's patches, Perceiver AR's latents: a quarter of the
  context) is as in its YAML.
- There is no band of parameters: at equal compute, a model's size is one of the things it may choose. A width of MegaByte,
  SpaceByte and H-Net is that of their layers over bytes, those over patches are 1.5 times as wide, and each has half the depth: so none is below 2.
- Compute is counted as in [models.md]({docs}models.md#flops-per-byte): attention with a whole context of keys, although causality
  halves it; SpaceByte and H-Net with the bytes per chunk that their YAML expects{measured}. Equal time asks the machine instead, and so the
  kernels; its runs have the best points of equal compute, which are not tuned again.
- The best point of a short trial need not be the best of a longer run, least for models that learn slowly at first. Where most of
  the best points lie at the same end of a range, a wider range might have helped, and some models more than others.
- So few trials of five settings leave much to chance: another search of the same size may find a better point for one model and a
  worse one for another. Differences of a few hundredths mean little, whatever the seeds of the best points say. A search before
  this one, of steps from 2,048 bytes, had gated S4D ahead of MambaByte on code: 1.913 to 1.929 bits per byte, after 2e12 FLOPs.
- A model is measured in windows of the context it chose (`disjoint`); `stateful` carries the state of a recurrent model
  through each document, which no other model here can do.
- Trials are judged on a sample of the split that the runs are measured on. That flatters all of them, and all alike.
- The models are small and see a few megabytes: nothing here says how they compare at a hundred times the size.
"""  # noqa: E501


class Place(NamedTuple):
    """A model's place on a corpus: the mean and the range of its seeds' bits per byte."""

    model: str
    mean: float
    lowest: float
    highest: float


def page(results: Rows, lengths: Rows, out: Path, place: Path) -> str:
    """The whole page as Markdown, for the file ``place``, of figures in the folder ``out``."""
    link, root = _link(out, place), _link(_ROOT, place)
    names = {"link": link, "root": root, "docs": _link(_ROOT / "docs", place), "results": RESULTS}
    names |= {"measured": _measured(results), "options": _options(results)}
    names["changed"] = "" if _of_these_ranges(results) else _CHANGED
    elsewhere = place.parent != out
    names["page"] = f" --page-file {os.path.relpath(place.absolute(), _ROOT)}" if elsewhere else ""
    blocks = [
        f"{verdict(results)}\n\n{_TITLE}\n{_CLAIMS}",
        _counts(results),
        f"![bits per byte against training FLOPs]({link}{FIGURE})\n\nDuring the runs at equal compute, on a "
        "sample of the validation bytes: the mean over the seeds, and their range.",
        *(_standings_table(results, kind) for kind in _KINDS),
        _winners(results),
        _space(results),
        lengths_section(lengths, link),
        _LIMITS.format(**names),
        "## How to repeat it\n" + _HOW.format(**names),
        _GPU.format(**names),
    ]
    return "\n\n".join(block.strip() for block in blocks if block) + "\n"


def _options(results: Rows) -> str:
    """The options of the tournament by which its runs were made, as words of its command."""
    said = ""
    if trials := [row["number"] for row in results if row["kind"] == "trial"]:
        said += f" --trials {max(trials) + 1}"
    for kind, option, budget in _BUDGETS:
        commands = [row["command"] for row in results if row["kind"] == kind and row["command"]]
        if commands:
            given = commands[0].partition(f"budget.{budget}=")[2].split()[0]
            said += f" --{option} {given.replace('e+', 'e')}"
    return said


def _of_these_ranges(results: Rows) -> bool:
    """Whether all trials lie within the ranges that their size has now."""
    for row in _of(results, kind="trial"):
        size = SIZES[row["size"]]
        low, high = size.learning_rates
        if not low <= row["learning_rate"] <= high:
            return False
        if any(row[key] not in getattr(size, field) for _, key, field in _RANGES):
            return False
    return True


def _link(target: Path, place: Path) -> str:
    path = os.path.relpath(target.absolute(), place.absolute().parent)
    return "" if path == "." else f"{path}/"


def standings(results: Rows, corpus: str, kind: str) -> list[Place]:
    """The models that have runs of a kind on a corpus, from the lowest mean up. A run that diverged counts as
    the 8 bits of guessing."""
    bits: dict[str, list[float]] = {}
    for row in results:
        if (row["corpus"], row["kind"]) == (corpus, kind):
            bits.setdefault(row["model"], []).append(row["bits_per_byte"])
    places = [Place(model, mean(found), min(found), max(found)) for model, found in bits.items()]
    return sorted(places, key=lambda each: each.mean)


def verdict(results: Rows) -> str:
    """Whether MambaByte wins, in bold, and where it does not."""
    won, lost, others = [], [], set()
    for kind, words in _KINDS.items():
        for corpus in _in_order(results, "corpus"):
            places = standings(results, corpus, kind)
            order = [each.model for each in places]
            if _OURS not in order or len(order) < 2:
                continue
            others |= set(order) - {_OURS}
            rank, ours = order.index(_OURS), places[order.index(_OURS)]
            rival = places[0] if rank else places[1]
            close = rival.highest >= ours.lowest if rank else ours.highest >= rival.lowest
            said = f"on {corpus} at {words}, {ours.mean:.3f} bits per byte against {_name(rival.model)}'s "
            said += f"{rival.mean:.3f}" + (", within the spread of the seeds" if close else "")
            (lost if rank else won).append(f"{_ordinal(rank + 1)} of {len(order)} {said}" if rank else said)
    if not won and not lost:
        return "**MambaByte has not been compared yet.**"
    if not lost:
        return f"**MambaByte is ahead of all {len(others)} others**: {'; '.join(won)}."
    also = f" It is ahead {'; '.join(won)}." if won else ""
    return f"**MambaByte loses**: it is {'; '.join(lost)}.{also}"


def _ordinal(number: int) -> str:
    return f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number, "th")


def _name(model: str) -> str:
    return MODELS[model].name


def _in_order(results: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in results))


def _of(results: Rows, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in results if all(row[key] == value for key, value in wanted.items())]


def _counts(results: Rows) -> str:
    trials, runs = _of(results, kind="trial"), [row for row in results if row["kind"] != "trial"]
    here = _in_order(results, "model")
    missing = [model.name for choice, model in MODELS.items() if choice not in here]
    seconds = sum(row["training_seconds"] or 0 for row in results)
    budgets = {
        "compute": f"{_flops(_of(results, kind='compute'))} FLOPs",
        "time": f"{_seconds(results)} s of training on one thread",
    }
    ran = " or ".join(words for kind, words in budgets.items() if _of(results, kind=kind))
    said = [
        f"{len(here)} models on {' and '.join(_in_order(results, 'corpus'))}: {len(trials)} trials of "
        f"{_flops(trials)} training FLOPs each, then {len(runs)} runs of the best points"
        + (f", with {ran}." if ran else "."),
        f"{results[0]['machine']}; {seconds / 3600:.1f} hours of training in all.",
    ]
    missing += [
        f"{corpus} at {words}"
        for corpus in _in_order(results, "corpus")
        for kind, words in _KINDS.items()
        if not _of(results, corpus=corpus, kind=kind)
    ]
    if missing:
        said.append(f"Not run: {', '.join(missing)}.")
    bad = [row for row in results if row["outcome"] != "finished"]
    if bad:
        count = f"{len(bad)} of the {len(results)} runs"
        said.append(f"{count} diverged or were refused by the model, and count as 8 bits.")
    return " ".join(said)


def _measured(results: Rows) -> str:
    """The compute that models with chunks took, by those that they made of the validation bytes."""
    said = []
    for model in _in_order(results, "model"):
        rows = [row for row in _of(results, model=model, kind="compute") if row["measured_flops"]]
        ratios = [row["measured_flops"] / row["training_flops"] for row in rows]
        if ratios:
            said.append(f"{_name(model)} {min(ratios):.2f} to {max(ratios):.2f} times as much")
    return f" (by the chunks that they made of the validation bytes: {', '.join(said)})" if said else ""


def _flops(rows: Rows) -> str:
    found = [row["training_flops"] for row in rows if row["training_flops"]]
    return f"{median(found):.1e}".replace("e+0", "e").replace("e+", "e") if found else "no"


def _seconds(results: Rows) -> str:
    found = [row["training_seconds"] for row in _of(results, kind="time") if row["training_seconds"]]
    return f"{median(found):.0f}" if found else "no"


def _standings_table(results: Rows, kind: str) -> str:
    blocks = []
    for corpus in _in_order(results, "corpus"):
        lines = [
            f"**{corpus}**\n",
            "| model | width x depth | parameters | trained on | bits per byte | stateful |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for place in standings(results, corpus, kind):
            rows = _of(results, corpus=corpus, kind=kind, model=place.model)
            stateful = [row["stateful_bits_per_byte"] for row in rows if row["stateful_bits_per_byte"]]
            trained = [row["bytes_trained"] for row in rows if row["bytes_trained"]]
            sizes = [row["parameters"] for row in rows if row["parameters"]]
            name = f"**{_name(place.model)}**" if place.model == _OURS else _name(place.model)
            spread = f" ({place.lowest:.3f} to {place.highest:.3f})" if len(rows) > 1 else ""
            cells = [
                f"{rows[0]['width']} x {rows[0]['depth']}",
                f"{sizes[0]:,}" if sizes else "",
                f"{median(trained) / 1e6:.2f} MB" if trained else "",
                f"{place.mean:.3f}{spread}",
                f"{mean(stateful):.3f}" if stateful else "",
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        if len(lines) > 3:
            blocks.append("\n".join(lines))
    seeds = sorted({row["seed"] for row in _of(results, kind=kind)})
    head = f"## At {_KINDS[kind]}\nMeans over the seeds {', '.join(map(str, seeds))}; in brackets the lowest "
    head += "and the highest."
    return "\n\n".join([head, *blocks]) if blocks else ""


def _best(results: Rows) -> list[dict[str, Any]]:
    """The best trial of every model on every corpus."""
    tried = [
        _of(results, corpus=corpus, model=model, kind="trial")
        for corpus in _in_order(results, "corpus")
        for model in _in_order(results, "model")
    ]
    return [min(trials, key=lambda row: row["bits_per_byte"]) for trials in tried if trials]


def _winners(results: Rows) -> str:
    lines = [
        "## The best points\n",
        "| corpus | model | learning rate | bytes a step | context | best trial | median trial | trials |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for best in _best(results):
        trials = _of(results, corpus=best["corpus"], model=best["model"], kind="trial")
        middle = median(row["bits_per_byte"] for row in trials)
        cells = [f"{best['learning_rate']:g}", f"{best['batch_bytes']:,}", f"{best['context_length']:,}"]
        cells += [f"{best['bits_per_byte']:.3f}", f"{middle:.3f}", str(len(trials))]
        lines.append(f"| {best['corpus']} | {_name(best['model'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _space(results: Rows) -> str:
    """What was tried, and how many of the best points lie at its ends."""
    trials, best = _of(results, kind="trial"), _best(results)
    if not trials:
        return ""
    lines = ["**The search space**, the same for all: what was tried of it\n"]
    lines += ["| | | best points at the lowest | at the highest |", "|---|---|---:|---:|"]
    for name, key in [*((name, key) for name, key, _ in _RANGES), ("learning rate", "learning_rate")]:
        values = sorted({row[key] for row in trials})
        ends = (sum(row[key] == end for row in best) for end in (values[0], values[-1]))
        counts = " | ".join(f"{count} of {len(best)}" for count in ends)
        said = ", ".join(f"{value:,}" for value in values)
        if key == "learning_rate":
            said = f"{values[0]:g} to {values[-1]:g}, on a logarithmic scale"
        lines.append(f"| {name} | {said} | {counts} |")
    return "\n".join(lines)


def draw(results: Rows, curves: Rows, lengths: Rows, folder: Path) -> None:
    """Bits per byte against training FLOPs, the mean and the range over the seeds; and those by context."""
    if curves:
        _draw_curves(curves, folder / FIGURE)
    draw_lengths(lengths, folder)


def _draw_curves(curves: Rows, path: Path) -> None:
    from matplotlib.figure import Figure

    corpora = _in_order(curves, "corpus")
    figure = Figure(figsize=(6 * len(corpora), 4.8), layout="constrained")
    for axes, corpus in zip(figure.subplots(1, len(corpora), squeeze=False)[0], corpora, strict=True):
        for number, model in enumerate(MODELS):
            bits: dict[float, list[float]] = {}
            for row in _of(curves, corpus=corpus, model=model):
                bits.setdefault(row["training_flops"], []).append(row["bits_per_byte"])
            if not bits:
                continue
            flops = sorted(bits)
            style = {"color": f"C{number}", "linewidth": 2.5 if model == _OURS else 1.3}
            axes.plot(
                flops, [mean(bits[each]) for each in flops], "o-", markersize=3, label=_name(model), **style
            )
            edges = [[edge(bits[each]) for each in flops] for edge in (min, max)]
            axes.fill_between(flops, *edges, color=f"C{number}", alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set(xlabel="training FLOPs", ylabel="bits per byte", title=corpus)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def write_results(results: Rows, path: Path) -> None:
    _write(results, RESULT_COLUMNS, path)


def write_curves(results: Rows, path: Path) -> None:
    """The validations during the runs at equal compute."""
    points: Iterable[dict[str, Any]] = (
        {**row, "training_flops": flops, "bits_per_byte": bits}
        for row in results
        if row["kind"] == "compute"
        for flops, bits in row["curve"]
    )
    _write(list(points), CURVE_COLUMNS, path)


def _write(rows: Rows, columns: Sequence[str], path: Path) -> None:
    write_rows([{key: row[key] for key in columns if key in row} for row in rows], columns, path)


def read(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the CSVs: results, curves, lengths; none of a file that is not there."""
    results, curves = (read_rows(folder / name, _WORDS, _WHOLE) for name in (RESULTS, CURVES))
    return results, curves, read_lengths(folder / LENGTHS)
