"""The figure and the page of benchmarks/tournament.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from tournament_csv import CURVES, KINDS, RESULTS
from tournament_lengths import LENGTHS, draw_lengths, lengths_section
from tournament_runs import CORPORA, SEEDS
from tournament_space import MODELS, SIZES
from tournament_text import CHANGED, CLAIMS, GPU, HISTORY, HOW, LIMITS, TITLE

Rows = Sequence[dict[str, Any]]
FIGURE = "tournament.png"
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
_EQUAL = (
    "Every model had the same number of trials over the same ranges at the same compute, and its best point "
    "the same new seeds."
)
_OURS = "mambabyte"
_ROOT = Path(__file__).absolute().parents[1]


class Place(NamedTuple):
    """A model's place on a corpus: the mean and the range of its seeds' bits per byte."""

    model: str
    mean: float
    lowest: float
    highest: float


def page(results: Rows, lengths: Rows, out: Path, place: Path) -> str:
    """The whole page as Markdown, for the file ``place``, of figures in the folder ``out``."""
    link, root = _link(out, place), _link(_ROOT, place)
    docs = _ROOT / "docs"
    names = {"link": link, "root": root, "docs": _link(docs, place), "results": RESULTS, "curves": CURVES}
    names |= {"measured": _measured(results), "warmup": _warmup(results), "options": _options(results)}
    names["lengths"] = f"[{LENGTHS}]({link}{LENGTHS})" if lengths else f"{LENGTHS}, if there is one,"
    names["changed"] = "" if _of_these_ranges(results) else CHANGED
    names["history"] = HISTORY if place.absolute().is_relative_to(docs) else ""
    names["terms"] = _unequal(results) or _EQUAL
    elsewhere = place.parent != out
    names["page"] = f" --page-file {os.path.relpath(place.absolute(), _ROOT)}" if elsewhere else ""
    blocks = [
        f"{verdict(results)}\n\n{TITLE}\n{CLAIMS}",
        _counts(results),
        f"![bits per byte against training FLOPs]({link}{FIGURE})\n\nDuring the runs at equal compute, on a "
        "sample of the validation bytes: the mean over the seeds, and their range.",
        *(_standings_table(results, kind) for kind in _KINDS),
        _winners(results),
        _space(results),
        lengths_section(lengths, link),
        LIMITS.format(**names),
        "## How to repeat it\n" + HOW.format(**names),
        GPU.format(**names),
    ]
    return "\n\n".join(block.strip() for block in blocks if block) + "\n"


def _unequal(results: Rows) -> str:
    """Which models have fewer trials or seeds than others, in a sentence; empty if none has."""
    had = {
        (model, corpus): tuple(len(_of(results, model=model, corpus=corpus, kind=kind)) for kind in KINDS)
        for model in _in_order(results, "model")
        for corpus in _in_order(results, "corpus")
    }
    most = tuple(max(counts) for counts in zip(*had.values(), strict=True))
    fewer = [
        f"{_name(model)} on {corpus} {', '.join(map(str, counts))}"
        for (model, corpus), counts in had.items()
        if counts != most
    ]
    if not fewer:
        return ""
    counted = "trials, runs at equal compute and runs at equal time"
    usual = ", ".join(map(str, most))
    return f"The terms are not equal: of {counted} there are {usual}, but of {'; '.join(fewer)}."


def _options(results: Rows) -> str:
    """The options of the tournament by which its runs were made, as words of its command."""
    said = "" if results[0]["size"] == "cpu" else f" --size {results[0]['size']}"
    if (corpora := _in_order(results, "corpus")) != list(CORPORA):
        said += f" --corpora {' '.join(corpora)}"
    if (models := _in_order(results, "model")) != list(MODELS):
        said += f" --models {' '.join(models)}"
    if trials := [row["number"] for row in results if row["kind"] == "trial"]:
        said += f" --trials {max(trials) + 1}"
    seeds = sorted({row["seed"] for row in results if row["kind"] != "trial"})
    if seeds and tuple(seeds) != SEEDS:
        said += f" --seeds {' '.join(map(str, seeds))}"
    for kind, option, budget in _BUDGETS:
        commands = [row["command"] for row in results if row["kind"] == kind and row["command"]]
        if given := _setting(commands[0], f"budget.{budget}") if commands else "":
            said += f" --{option} {given.replace('e+', 'e')}"
    command = next((row["command"] for row in results if row["command"]), "")
    further = command.partition(" data.windows=packed ")[2].partition(" seed=")
    return f"{said} -- {further[0]}" if further[1] and further[0] else said


def _setting(command: str, name: str) -> str:
    """The value that a command gives a setting, the last if there are several; empty if it gives none."""
    return ([""] + [word[len(name) + 1 :] for word in command.split() if word.startswith(f"{name}=")])[-1]


def _warmup(results: Rows) -> str:
    """That of the runs at equal time, whose steps nobody knows beforehand."""
    shares = [
        float(_setting(row["command"], "optimizer.warmup_steps")) / row["steps"]
        for row in _of(results, kind="time")
        if row["steps"] and _setting(row["command"], "optimizer.warmup_steps")
    ]
    if not shares:
        return ""
    least, most = min(shares), max(shares)
    share = f"{least:.0%} to {most:.0%} of theirs"
    return f", and their learning rate rises over as many steps as a trial's: {share}"


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
            if rank or rival.mean == ours.mean:
                lost.append(f"{_ordinal(rank + 1) if rank else 'no better than 1st'} of {len(order)} {said}")
            else:
                won.append(said)
    unequal = " The terms are not equal: see the end of this page." if _unequal(results) else ""
    if not won and not lost:
        return "**MambaByte has not been compared yet.**"
    if not lost:
        return f"**MambaByte is ahead of all {len(others)} others**: {'; '.join(won)}.{unequal}"
    also = f" It is ahead {'; '.join(won)}." if won else ""
    return f"**MambaByte loses**: it is {'; '.join(lost)}.{also}{unequal}"


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
    given = next((_setting(row["command"], "trainer.precision") for row in results if row["command"]), "")
    precision = f", all in {given}" if given else ""
    budgets = {
        "compute": f"{_flops(_of(results, kind='compute'))} FLOPs",
        "time": f"{_seconds(results)} s of training{' on one thread' if results[0]['size'] == 'cpu' else ''}",
    }
    ran = " or ".join(words for kind, words in budgets.items() if _of(results, kind=kind))
    said = [
        f"{len(here)} models on {' and '.join(_in_order(results, 'corpus'))}: {len(trials)} trials of "
        f"{_flops(trials)} training FLOPs each, then {len(runs)} runs of the best points"
        + (f", with {ran}." if ran else "."),
        f"{results[0]['machine']}{precision}; {seconds / 3600:.1f} hours of training in all.",
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
    most = next((_setting(row["command"], "callbacks.evaluate_bytes") for row in runs if row["command"]), "")
    if most.isdigit():
        said.append(f"Bits per byte are those of the first {int(most):,} bytes of the validation split.")
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
    deeper = [row for row in best if row["depth"] != min(row["depth"] for row in trials)]
    if deeper and 2 * len(deeper) <= len(best):
        names = " and ".join(f"{_name(row['model'])} on {row['corpus']}" for row in deeper)
        lines.append(f"\nThe best points that are not at the lowest depth: {names}.")
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
