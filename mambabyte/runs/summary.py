"""What a finished run has to show: summary.json, loss_curve.png, and a short report."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mambabyte.checkpoints import load_model
from mambabyte.data import ByteCorpus
from mambabyte.evaluation import Protocol, compressor_bits_per_byte, evaluate
from mambabyte.evaluation.bits_per_byte import first_documents
from mambabyte.runs.loss_curve import plot_loss_curve
from mambabyte.runs.metrics_csv import read_metrics
from mambabyte.runtime.atomic_write import whole_file
from mambabyte.runtime.progress import progress_bar
from mambabyte.runtime.units import counted
from mambabyte.training.callbacks.samples import sample_text
from mambabyte.training.settings import CallbacksConfig


def summarize(
    run_dir: Path,
    name: str,
    step: int,
    context_length: int,
    corpus: ByteCorpus,
    callbacks: CallbacksConfig,
    device: torch.device,
) -> dict[str, Any]:
    """Measure the run's last checkpoint on all validation bytes; write summary.json and loss_curve.png.

    The figures are those of ``mambabyte eval --bpb ckpt=RUN``, without and with ``protocol=stateful``; the
    second is None for a model whose state grows.
    """
    print(f"mambabyte: measuring {corpus.num_bytes:,} validation bytes", file=sys.stderr)
    model = load_model(run_dir)
    measured = {
        name: evaluate(model, corpus, Protocol(name, context_length), device, progress=progress_bar(name))
        for name in (("disjoint", "stateful") if model.recurrent else ("disjoint",))
    }
    result, stateful = measured["disjoint"], measured.get("stateful")
    compressors = compressor_bits_per_byte(first_documents(corpus))
    rows = read_metrics(run_dir / "metrics.csv")
    curve = run_dir / "loss_curve.png"
    plot_loss_curve(rows, compressors, result.bits_per_byte, name, curve)
    summary = {
        "name": name,
        "step": step,
        "bytes_seen": rows[-1]["bytes"] if rows else None,
        "training_seconds": rows[-1]["seconds"] if rows else None,
        "parameters": model.num_parameters(),
        "validation": result.to_dict(per_document=False),
        "validation_stateful": stateful and stateful.to_dict(per_document=False),
        "compressors": compressors,
        "sample": callbacks.sample_prompt
        + sample_text(model, callbacks.sample_prompt, callbacks.sample_bytes),
        "run_dir": str(run_dir),
        "loss_curve": str(curve),
    }
    with whole_file(run_dir / "summary.json") as file:
        file.write(json.dumps(summary, indent=2, ensure_ascii=False).encode() + b"\n")
    return summary


def read_summary(run_dir: Path, step: int) -> dict[str, Any] | None:
    """The summary of the run at ``step``; None if there is none."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if summary.get("step") == step else None


def report(summary: Mapping[str, Any]) -> str:
    """The end of a run in a few lines."""
    result, protocol = summary["validation"], summary["validation"]["protocol"]
    stateful = summary["validation_stateful"]
    carried = (
        [f"with the state carried through each document: {stateful['bits_per_byte']:.4f} (protocol stateful)"]
        if stateful
        else []
    )
    rivals = " | ".join(f"{name} {value:.4f}" for name, value in summary["compressors"].items())
    return "\n".join(
        (
            f"validation: {result['bits_per_byte']:.4f} bits per byte (protocol {protocol['name']}, context "
            f"{protocol['context_length']:,} bytes, {counted(result['bytes'], 'byte')} in "
            f"{counted(result['documents'], 'document')})",
            *carried,
            f"on the same bytes: {rivals}",
            "sample:",
            *(f"  {line}" for line in _printable(summary["sample"]).split("\n")),
            f"run: {summary['run_dir']} ({summary['parameters']:,} parameters, {summary['step']:,} steps)",
            f"loss curve: {summary['loss_curve']}",
        )
    )


def _printable(text: str) -> str:
    # an untrained model writes control characters too, and a terminal would obey them
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
