"""The end of a run: its last checkpoint measured on all validation bytes."""

from __future__ import annotations

import sys
from typing import Any

from mambabyte.checkpoints import load_model
from mambabyte.data import ByteCorpus
from mambabyte.evaluation import BitsPerByte, Protocol, compressor_bits_per_byte, evaluate
from mambabyte.evaluation.bits_per_byte import first_documents
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
    second is None for a model whose state grows.
    """
    run_dir, prompt = settings.run_dir, settings.callbacks.sample_prompt
    device = choose_device("cpu" if settings.trainer.accelerator == "cpu" else "auto")
    print(f"mambabyte: measuring {corpus.num_bytes:,} validation bytes", file=sys.stderr)
    model = load_model(run_dir, settings.model)

    def measured(name: str) -> BitsPerByte:
        protocol = Protocol(name, settings.context_length)
        return evaluate(model, corpus, protocol, device, progress=progress_bar(name))

    result, stateful = measured("disjoint"), measured("stateful") if model.recurrent else None
    compressors = compressor_bits_per_byte(first_documents(corpus))
    rows = read_metrics(run_dir / "metrics.csv")
    curve = run_dir / "loss_curve.png"
    plot_loss_curve(rows, compressors, result.bits_per_byte, settings.name, curve)
    summary = {
        "name": settings.name,
        "step": step,
        "bytes_seen": rows[-1]["bytes"] if rows else None,
        "training_seconds": rows[-1]["seconds"] if rows else None,
        "parameters": model.num_parameters(),
        "validation": result.to_dict(per_document=False),
        "validation_stateful": stateful and stateful.to_dict(per_document=False),
        "compressors": compressors,
        "sample": prompt + sample_text(model, prompt, settings.callbacks.sample_bytes),
        "run_dir": str(run_dir),
        "loss_curve": str(curve),
    }
    write_summary(run_dir, summary)
    return summary
