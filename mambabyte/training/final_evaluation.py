"""The end of a run: its last checkpoint measured on the validation bytes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from mambabyte.checkpoints import load_model
from mambabyte.data import ByteCorpus
from mambabyte.evaluation import BitsPerByte, Protocol, compressor_bits_per_byte, evaluate
from mambabyte.evaluation.bits_per_byte import by_part, first_documents
from mambabyte.evaluation.protocols import ProtocolName
from mambabyte.runs.loss_curve import plot_loss_curve
from mambabyte.runs.metrics_csv import read_metrics
from mambabyte.runs.summary import write_summary
from mambabyte.runtime.devices import choose_device
from mambabyte.runtime.progress import progress_bar
from mambabyte.training.callbacks.samples import sample_text
from mambabyte.training.settings import TrainSettings


def summarize(settings: TrainSettings, step: int, corpus: ByteCorpus) -> dict[str, Any]:
    """Measure the run's last checkpoint; write summary.json and loss_curve.png.

    The figures are those of ``mambabyte eval --bpb ckpt=RUN``, without and with ``protocol=stateful``; the
    second is None for a model whose state grows. ``callbacks.evaluate_bytes`` is eval's ``max_bytes``; if it
    is 0, both are None.
    """
    run_dir, prompt = settings.run_dir, settings.callbacks.sample_prompt
    most = settings.callbacks.evaluate_bytes
    device = choose_device("cpu" if settings.trainer.accelerator == "cpu" else "auto")
    model = load_model(run_dir, settings.model)
    result = stateful = None
    compressors: dict[str, float] = {}
    if most != 0:
        measured = corpus.num_bytes if most is None else min(most, corpus.num_bytes)
        print(f"mambabyte: measuring {measured:,} validation bytes", file=sys.stderr)

        def measure(name: ProtocolName) -> BitsPerByte:
            protocol = Protocol(name, settings.context_length)
            return evaluate(model, corpus, protocol, device, most, progress_bar(name))

        result, stateful = measure("disjoint"), measure("stateful") if model.recurrent else None
        compressors = compressor_bits_per_byte(first_documents(corpus, most))
    rows = read_metrics(run_dir / "metrics.csv")
    curve = run_dir / "loss_curve.png"
    final = result.bits_per_byte if result else None
    plot_loss_curve(rows, compressors, final, settings.name, curve)
    summary = {
        "name": settings.name,
        "ckpt": settings.ckpt,
        "step": step,
        "bytes_seen": rows[-1]["bytes"] if rows else None,
        "training_seconds": rows[-1]["seconds"] if rows else None,
        "parameters": model.num_parameters(),
        "validation": result and result.to_dict(per_document=False),
        "validation_stateful": stateful and stateful.to_dict(per_document=False),
        "parts": {name: asdict(part) for name, part in by_part(result, corpus).items()} if result else {},
        "worst_document": result and worst_document(result),
        "compressors": compressors,
        "sample": prompt + sample_text(model, prompt, settings.callbacks.sample_bytes),
        "run_dir": str(run_dir),
        "loss_curve": str(curve),
    }
    write_summary(run_dir, summary)
    return summary


def worst_document(result: BitsPerByte) -> dict[str, Any] | None:
    """The document that costs the most bits above the average; None if there is no other. (The one with the
    most bits per byte would nearly always be a very short one.)"""
    if result.documents < 2:
        return None
    return asdict(
        max(result.per_document, key=lambda each: (each.bits_per_byte - result.bits_per_byte) * each.bytes)
    )
