"""The table of predicted beside measured, as Markdown: `python benchmarks/gpu/table.py [RESULTS.jsonl]`.

The predictions come from the compiled kernels' registers, instructions and bytes, counted before any of it
had run on a GPU. Without results, every figure is "not run".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

NOT_RUN = "not run"
KERNELS = ("cuda", "triton")  # of ours
Figures = dict[tuple[str, str, str], float]  # of (stage, case, metric)
Measured = Callable[[Figures], str]


class Row(NamedTuple):
    """`measured` raises KeyError where a figure that it needs is missing."""

    what: str
    predicted: str
    reach: str
    measured: Measured


def one(stage: str, case: str, metric: str, form: str) -> Measured:
    return lambda found: form.format(found[stage, case, metric])


def ratio(stage: str, metric: str, above: str, below: list[str]) -> Measured:
    """One case's figure over the smallest of the others'."""

    def measured(found: Figures) -> str:
        least = min((found[key] for case in below if (key := (stage, case, metric)) in found), default=None)
        if least is None:
            raise KeyError(metric)
        return f"{found[stage, above, metric] / least:.2f}x"

    return measured


def of_kernels(found: Figures, metric: str, dtype: str = "") -> dict[str, float]:
    """The figures of stage gradients for our own kernels."""
    cases = {
        case: value
        for (stage, case, name), value in found.items()
        if (stage, name) == ("gradients", metric) and case.split()[1] in KERNELS and case.endswith(dtype)
    }
    if not cases:
        raise KeyError(metric)
    return cases


def worst_error(dtype: str) -> Measured:
    def measured(found: Figures) -> str:
        errors = of_kernels(found, "error", dtype)
        worst = max(errors, key=errors.__getitem__)
        return f"{errors[worst]:.1e} ({worst})"

    return measured


def same_bits(found: Figures) -> str:
    return (
        ", ".join(f"not {case}" for case, same in of_kernels(found, "same_bits").items() if not same) or "yes"
    )


def tests(found: Figures) -> str:
    counts = {word: number for (_, case, word), number in found.items() if case == "tests marked gpu"}
    return ", ".join(
        f"{counts[word]:.0f} {word}" for word in ("passed", "failed", "error") if word in counts
    ) or (NOT_RUN)


SIZE = "B=8 L=8192"
THEIRS = f"{SIZE} mamba_ssm, its layout"
OURS, PEER = "ours micro-batch 4", "peer micro-batch 4"


def scan(backend: str, metric: str) -> Measured:
    return one("scan", f"{SIZE} {backend}", metric, "{:.2f} ms")


ROWS = [
    Row("tests marked gpu", "", "none fails", tests),
    Row(
        "copy on the device, bytes read + written", "", "", one("machine", "copy", "bandwidth", "{:.2f} TB/s")
    ),
    Row("bf16 matrix product, 8192", "", "", one("machine", "product", "rate", "{:.0f} TFLOP/s")),
    Row("scan, cuda, forward", ">= 0.85 ms", "", scan("cuda", "forward")),
    Row("scan, cuda, both", ">= 4.1 ms", "<= 4.4 ms", scan("cuda", "both")),
    Row("scan, triton, forward", ">= 1.05 ms", "", scan("triton", "forward")),
    Row("scan, triton, both", "8 to 11 ms", "", scan("triton", "both")),
    Row("scan, mamba_ssm in its layout, forward", ">= 1.65 ms", "", scan("mamba_ssm, its layout", "forward")),
    Row("scan, mamba_ssm in its layout, both", "9 to 12 ms", "", scan("mamba_ssm, its layout", "both")),
    Row("scan, mamba_ssm in ours, both", "", "", scan("mamba_ssm", "both")),
    Row(
        "scan, both: mamba_ssm in its layout / ours",
        "1.7x to 2.7x",
        ">= 1.5x",
        ratio("scan", "both", THEIRS, [f"{SIZE} {kernel}" for kernel in KERNELS]),
    ),
    Row(
        "ssd, 64 states, triton, forward", ">= 0.63 ms", "", one("ssd", "N=64 triton", "forward", "{:.2f} ms")
    ),
    Row("ssd, 64 states, triton, both", ">= 1.9 ms", "", one("ssd", "N=64 triton", "both", "{:.2f} ms")),
    Row(
        "ssd, 128 states, triton, forward",
        ">= 1.0 ms",
        "",
        one("ssd", "N=128 triton", "forward", "{:.2f} ms"),
    ),
    Row("ssd, 128 states, triton, both", ">= 2.9 ms", "", one("ssd", "N=128 triton", "both", "{:.2f} ms")),
    Row(
        "ssd, both: ours with 64 states / our scan with 16",
        "",
        "",
        ratio("ssd", "both", "N=64 triton", ["selective scan"]),
    ),
    Row(
        "ssd, 128 states, both: mamba_ssm / ours",
        "",
        "",
        ratio("ssd", "both", "N=128 mamba_ssm", ["N=128 triton"]),
    ),
    Row(
        "convolution, triton, both",
        ">= 0.22 ms",
        "",
        one("elementwise", "causal_conv1d triton", "both", "{:.2f} ms"),
    ),
    Row(
        "convolution, both: causal_conv1d / ours",
        "",
        "",
        ratio("elementwise", "both", "causal_conv1d peer", ["causal_conv1d triton"]),
    ),
    Row(
        "norm, triton, both",
        ">= 0.31 ms",
        "",
        one("elementwise", "residual_norm triton", "both", "{:.2f} ms"),
    ),
    Row(
        "norm, both: mamba_ssm / ours",
        "",
        "",
        ratio("elementwise", "both", "residual_norm peer", ["residual_norm triton"]),
    ),
    Row("353M step, ours", "100 kB/s", "", one("step", OURS, "rate", "{:.0f} kB/s")),
    Row("353M step, MambaLMHeadModel", "66 kB/s", "", one("step", PEER, "rate", "{:.0f} kB/s")),
    Row("353M step: MambaLMHeadModel's time / ours", "1.5x", ">= 1.4x", ratio("step", "step", PEER, [OURS])),
    Row("353M step, ours, MFU", "0.22", ">= 0.30", one("step", OURS, "mfu", "{:.2f}")),
    Row("353M step, ours, peak memory", "38.6 GiB", "<= 40 GiB", one("step", OURS, "peak", "{:.1f} GiB")),
    Row(
        "353M step, peak memory: ours / MambaLMHeadModel", "", "<= 0.8x", ratio("step", "peak", OURS, [PEER])
    ),
    Row("353M by `mambabyte train`", "", "", one("commands", "353M by the trainer", "rate", "{:.0f} kB/s")),
    Row(
        "generation, 972M, ours, 8,192 bytes",
        ">= 3.3 to 4.8 s",
        "< 10 s",
        one("generation", "972M ours", "whole", "{:.1f} s"),
    ),
    Row(
        "generation, 972M: mamba_ssm's time / ours",
        "",
        ">= 1.2x",
        ratio("generation", "whole", "972M peer", ["972M ours"]),
    ),
    Row(
        "generation, 353M, ours, 8,192 bytes",
        ">= 1.2 to 1.7 s",
        "",
        one("generation", "353M ours", "whole", "{:.1f} s"),
    ),
    Row(
        "generation, 353M: mamba_ssm's time / ours",
        "",
        "",
        ratio("generation", "whole", "353M peer", ["353M ours"]),
    ),
    Row("error against float64, fp32", "", "<= 1e-5", worst_error("float32")),
    Row("error against float64, bf16", "", "<= 1e-2", worst_error("bfloat16")),
    Row("the same bits twice", "yes", "yes", same_bits),
    Row(
        "compress and decompress on the device",
        "",
        "the same",
        one("commands", "the same bytes", "same", "{:.0f}"),
    ),
]


def table(found: Figures) -> str:
    """Every row as a line of Markdown; what was not measured is "not run"."""
    lines = ["| figure | predicted | reach | measured |", "|---|---|---|---|"]
    for row in ROWS:
        try:
            measured = row.measured(found)
        except (KeyError, ZeroDivisionError):  # a dry run measures no memory
            measured = NOT_RUN
        lines.append(f"| {row.what} | {row.predicted} | {row.reach} | {measured} |")
    return "\n".join(lines)


def read(path: Path) -> tuple[Figures, list[str]]:
    """The figures of a results file, and its notes."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    figures = {(row["stage"], row["case"], row["metric"]): row["value"] for row in rows if "metric" in row}
    return figures, [f"{row['stage']}: {row['case']}: {row['note']}" for row in rows if "note" in row]


if __name__ == "__main__":
    print(table(read(Path(sys.argv[1]))[0] if len(sys.argv) > 1 else {}))
