"""The figures of the page. Each is drawn from what the modules compute, when the page is built."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.lineage import hippo, s4, selection, ssm
from mambabyte.lineage.traffic import count_traffic
from mambabyte.ops import backend_for, selective_scan

if TYPE_CHECKING:
    from mambabyte.models import MambaByte

DPI = 150
SENTENCE = b"I want to order a hamburger"
WITHOUT_MODEL = (
    "*Here stands the Δ of a trained model where the page is built with one: "
    "`mambabyte lineage ckpt=runs/quickstart`.*"
)
_STYLE = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "lines.linewidth": 1.5,
}  # fmt: skip


def png(draw: Callable[[], Figure]) -> bytes:
    """A figure as a file."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        file = io.BytesIO()
        draw().savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _canvas(height: float, width: float = 7.6) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def discretisation() -> Figure:
    """The response of a damped oscillator to a constant input, by each rule, and the rules' errors."""
    A = torch.tensor([[0.0, 1.0], [-9.0, -0.6]]).double()  # 3 rad/s, damping ratio 0.1
    B, C, end = torch.tensor([0.0, 9.0]).double(), torch.tensor([1.0, 0.0]).double(), 5.6

    def response(rule: Callable[..., tuple[Tensor, Tensor]], steps: int) -> Tensor:
        return ssm.recurrence(*rule(A, B, end / steps), C, torch.ones(steps).double())

    figure = _canvas(2.9)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    exact = response(ssm.zero_order_hold, 560)
    left.plot(torch.arange(1, 561) / 100, exact, color="0.6", linewidth=4, alpha=0.6, label="exact")
    rules = {"zero-order hold": ssm.zero_order_hold, "bilinear": ssm.bilinear, "Euler": ssm.euler}
    for (name, rule), color, marker in zip(rules.items(), ("C0", "C1", "C3"), "osv", strict=True):
        left.plot(0.35 * torch.arange(1, 17), response(rule, 16), marker, color=color, ms=5, label=name)
        if name != "zero-order hold":  # it errs by rounding alone
            steps = [2**n for n in range(5, 12)]
            errors = [(response(rule, n)[-1] - exact[-1]).abs().item() for n in steps]
            right.loglog([end / n for n in steps], errors, f"{marker}-", color=color, ms=4)
    left.set(xlabel="seconds", ylabel="y", ylim=(-0.6, 2.6), title="steps of 0.35 s")
    left.legend(ncols=2, loc="lower right")
    right.set(xlabel="step, seconds", title="error at the end")
    return figure


def _signal(length: int) -> Tensor:
    """Waves of 1 to 24 periods, the shorter the weaker."""
    generator = torch.Generator().manual_seed(3)
    periods = torch.arange(1, 25, dtype=torch.float64)
    phases, sizes = torch.rand(2, 24, generator=generator, dtype=torch.float64)
    x = torch.arange(length, dtype=torch.float64)[:, None] / length
    return ((0.3 + sizes) / periods.sqrt() * torch.sin(2 * torch.pi * (periods * x + phases))).sum(1)


def reconstruction() -> Figure:
    length, window = 10_000, 2_000
    u = _signal(length)
    figure = _canvas(4.2)
    panels = figure.subplots(2, 1, sharex=True)
    for axes in panels:
        axes.plot(u, color="0.6", linewidth=4, alpha=0.6, label="the signal")
    c = hippo.remember_all(u, 64)
    # the first coefficients are those of a smaller memory
    for size, color in ((64, "C0"), (16, "C1")):
        panels[0].plot(hippo.reconstruct(c[:size], length), color=color, linewidth=1.2, label=f"N = {size}")
    panels[0].set_title("LegS: all of the past")
    windowed = hippo.reconstruct(hippo.remember_window(u, 64, window), window)
    panels[1].plot(range(length - window, length), windowed, color="C0", linewidth=1.2, label="N = 64")
    panels[1].set(title=f"LegT: the last {window:,} values", xlabel="step")
    for axes in panels:
        axes.legend(loc="lower left", ncols=3)
    return figure


def reconstruction_error() -> Figure:
    length = 10_000
    x = torch.arange(length, dtype=torch.float64) / length
    signals = {
        "a jump": (x > 0.4).double(), "a kink": (x - 0.4).abs(), "smooth": torch.sin(9 * torch.pi * x)
    }  # fmt: skip
    sizes = torch.unique(torch.logspace(0.3, 6, 25, base=2.0).round().long()).tolist()
    figure = _canvas(3.3, 5.2)
    axes = figure.subplots()
    for (name, u), slope, color in zip(signals.items(), (-0.5, -1.5, None), ("C3", "C1", "C0"), strict=True):
        c = hippo.remember_all(u, sizes[-1])
        errors = [float((hippo.reconstruct(c[:n], length) - u).square().mean().sqrt()) for n in sizes]
        axes.loglog(sizes, errors, "o-", color=color, markersize=3.5, label=name)
        if slope is not None:
            theory = [errors[-1] * (n / sizes[-1]) ** slope for n in sizes]
            axes.loglog(sizes, theory, "--", color=color, linewidth=1, label=f"$N^{{{slope:g}}}$")
    axes.set(xlabel="N, coefficients", ylabel="root mean square error", xlim=(1.8, 72))
    axes.set_xticks([2, 4, 8, 16, 32, 64])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend()
    return figure


def memory() -> Figure:
    t = torch.linspace(0, 4, 200).double()
    A, B = hippo.legs(5)
    figure = _canvas(2.6)
    axes = figure.subplots()
    for n, curve in enumerate(hippo.warped_basis(t, 5).T):
        axes.plot(t, curve, color=f"C{n}", label=f"state {n}")
        some = t[n * 2 :: 20]
        axes.plot(some, [(torch.linalg.matrix_exp(x * A) @ B)[n] for x in some], ".", color=f"C{n}")
    axes.set(xlabel="seconds since the pulse", title="lines: the formula; dots: exp(tA) B")
    axes.legend()
    return figure


def kernels() -> Figure:
    inits = {"LegS": s4.s4d_legs, "Inv": s4.s4d_inv, "Lin": s4.s4d_lin, "Real": s4.s4d_real}
    figure = _canvas(3.4)
    panels = figure.subplot_mosaic("ab;ac;ad;ae", width_ratios=(2, 3))
    panels["a"].set_yscale("symlog", linthresh=10)
    for (name, init), marker, color, place in zip(inits.items(), "o+x.", range(4), "bcde", strict=True):
        Lambda = init(64).to(torch.complex128)
        panels["a"].plot(Lambda.real, Lambda.imag, marker, color=f"C{color}", markersize=4, label=name)
        K = s4.s4d_kernel(Lambda, torch.ones(len(Lambda), dtype=torch.complex128), 0.01, 400)
        panels[place].plot(K, color=f"C{color}", linewidth=1.2)
        panels[place].set_ylabel(name, rotation=0, ha="right", va="center")
        if place != "e":
            panels[place].tick_params(labelbottom=False)
    panels["a"].set(xlabel="real part", ylabel="imaginary part", xlim=(-4.6, 0), title="eigenvalues")
    panels["a"].legend(loc="upper left")
    panels["b"].set_title("kernels")
    panels["e"].set_xlabel("step")
    return figure


def delta(model: MambaByte) -> Figure:
    sizes = selection.step_sizes(model, SENTENCE).mean(-1)
    relative = (sizes / sizes.median(dim=1, keepdim=True).values).log2()
    figure = _canvas(1.5 + 0.28 * len(relative))
    axes = figure.subplots()
    axes.grid(False)
    most = float(relative.abs().max())
    image = axes.imshow(relative.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    axes.set_xticks(range(len(SENTENCE)), [chr(byte).replace(" ", "␣") for byte in SENTENCE])
    axes.set_yticks(range(len(relative)), [str(n + 1) for n in range(len(relative))])
    axes.tick_params(length=0)
    axes.set(ylabel="layer")
    bar = figure.colorbar(image, pad=0.01, format=lambda x, _: f"{2**x:.2g}x")
    bar.ax.tick_params(length=0)
    return figure


def matrices() -> Figure:
    length = 48
    _, changing, A, B, C = (x.double() for x in selection.example(length, 1))
    constant = [x.mean(1, keepdim=True).expand_as(x) for x in (changing, B.abs(), C.abs())]
    figure = _canvas(3.7)
    for axes, title, (step, b, c) in zip(
        figure.subplots(1, 2), ("S4D: a convolution", "S6: every row its own"), (constant, (changing, B, C)),
        strict=True,
    ):  # fmt: skip
        M = selection.mixing_matrix(step[0, :, 0], A[0], b[0], c[0])
        most = float(M.abs().max().sqrt())
        axes.imshow((M.sign() * M.abs().sqrt()).numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
        axes.grid(False)
        axes.set(title=title, xlabel="input s", ylabel="output t")
    return figure


def traffic() -> Figure:
    inputs = selection.example(length=2048, channels=1024)
    elements = inputs[0].numel()
    forms: dict[str, Callable[..., Any]] = {
        "all states in memory": selection.scan_in_memory,
        f"our op ({backend_for(inputs[0].device)})": selective_scan,
    }
    counted = [count_traffic(form, *inputs) for form in forms.values()]
    titles = ("moved in forward", "kept between", "moved in backward")
    figure = _canvas(1.9)
    for axes, title, values in zip(
        figure.subplots(1, 3, sharey=True), titles, zip(*counted, strict=True), strict=True
    ):
        bars = axes.barh(list(forms), [value / elements for value in values], color=("C3", "C0"), height=0.55)
        axes.bar_label(bars, [f"{value / elements:,.0f}" for value in values], padding=4)
        axes.set(title=title, xscale="log", xlim=(1, 1e5), xlabel="bytes per element of u")
        axes.set_xticks([1, 10, 100, 1000, 10_000], minor=False)
        axes.minorticks_off()
        axes.grid(axis="y", visible=False)
    axes.invert_yaxis()  # shared
    return figure


def split(path: Path) -> Figure:
    """Bars of the CSV that benchmarks/synthetic_tasks.py writes: mixer, block, task and accuracy (0 to 1), of
    copying and selective copying; a mixer in several blocks is named with each. Seeds are averaged."""
    rows = _rows(path, "mixer", "block", "task", "accuracy")
    found: dict[str, dict[str, list[float]]] = {"copying": {}, "selective_copying": {}}
    if not any(row["task"] in found for row in rows):
        raise ValueError("it has no row of the tasks copying and selective_copying")
    for row in rows:
        name = (
            row["mixer"].replace("_", "\n")
            if row["block"] == "plain"
            else f"{row['block']}\n+ {row['mixer']}"
        )
        if row["task"] in found:
            found[row["task"]].setdefault(name, []).append(100 * _number(row, "accuracy", 0, 1))
    names = list(dict.fromkeys(name for by_name in found.values() for name in by_name))
    figure = _canvas(2.9)
    axes = figure.subplots()
    for n, (task, by_name) in enumerate(found.items()):
        values = [sum(each) / len(each) if (each := by_name.get(name)) else float("nan") for name in names]
        bars = axes.bar(
            [i + 0.4 * n - 0.2 for i in range(len(names))], values, 0.38, label=task.replace("_", " ")
        )
        axes.bar_label(bars, fmt="%.0f", padding=1, fontsize=6)
    axes.set_xticks(range(len(names)), names, fontsize=6.5)
    axes.set(ylabel="answers right, %", ylim=(0, 118))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper right", ncols=2)
    return figure


def scaling(path: Path) -> Figure:
    """Lines of the CSV that benchmarks/scaling.py writes: layer, length (steps) and training_seconds."""
    rows = _rows(path, "layer", "length", "training_seconds")
    figure = _canvas(3.6, 5.6)
    axes = figure.subplots()
    for layer in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == layer]
        x_and_y = ("length", 1), ("training_seconds", 1e-9)
        points = sorted(tuple(_number(row, name, least) for name, least in x_and_y) for row in own)
        axes.loglog(*zip(*points, strict=True), "o-", markersize=3.5, base=2, label=layer.replace("_", " "))
    axes.set_yscale("log", base=10)
    axes.set(xlabel="length", ylabel="seconds, forward and backward")
    axes.legend()
    return figure


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not rows or not set(columns) <= set(rows[0]):
        raise UserError(f"{path} is not drawn: it must have rows and the columns {', '.join(columns)}")
    for number, row in enumerate(rows, start=1):
        if any(not row[column] for column in columns):  # None where a row ends early
            raise UserError(f"{path} is not drawn: row {number} has a cell too few, or an empty one")
    return rows


def _number(row: dict[str, str], column: str, least: float, most: float = sys.float_info.max) -> float:
    value = float(row[column])
    if not least <= value <= most:  # nor NaN
        raise ValueError(f"{column}={row[column]} is out of range")
    return value


COMPUTED: dict[str, Callable[[], Figure]] = {
    "discretisation": discretisation,
    "reconstruction": reconstruction,
    "reconstruction_error": reconstruction_error,
    "memory": memory,
    "kernels": kernels,
    "matrices": matrices,
    "traffic": traffic,
}
# drawn from measurements that take too long to repeat, <name>.csv
RECORDED: dict[str, Callable[[Path], Figure]] = {"synthetic_tasks": split, "scaling": scaling}


def draw(name: str, model: MambaByte | None, records: Path) -> bytes | str:
    """The figure as a PNG, or else what stands in its place, in Markdown.

    Args:
        model: for the figure of Δ.
        records: the folder of the recorded figures' CSV files.

    Raises:
        UserError: a CSV file that is there cannot be drawn.
    """
    if name == "delta":
        return png(partial(delta, model)) if model is not None else WITHOUT_MODEL
    if name in RECORDED:
        path = records / f"{name}.csv"
        try:
            return png(partial(RECORDED[name], path)) if path.is_file() else ""
        except ValueError as error:
            raise UserError(f"{path} is not drawn: {error}") from error
    return png(COMPUTED[name])
