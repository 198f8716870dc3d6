"""The end of a run: its last checkpoint measured on the validation bytes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import torch

from mambabyte.checkpoints import load_model
from mambabyte.data import ByteCorpus
from mambabyte.data.tasks import TaskSequences
from mambabyte.evaluation import BitsPerByte, Protocol, compressor_bits_per_byte, evaluate
from mambabyte.evaluation.bits_per_byte import by_part, first_documents
from mambabyte.evaluation.protocols import ProtocolName
from mambabyte.evaluation.task_accuracy import evaluate_task
from mambabyte.models import ByteLM
from mambabyte.runs.accuracy_curve import plot_accuracy_curve
from mambabyte.runs.loss_curve import plot_loss_curve
from mambabyte.runs.metrics_csv import read_metrics
from mambabyte.runs.summary import write_summary
from mambabyte.runtime.devices import choose_device
from mambabyte.runtime.progress import progress_bar
from mambabyte.runtime.units import counted
from mambabyte.training.callbacks.samples import sample_text
from mambabyte.training.settings import TrainSettings


def summarize(settings: TrainSettings, step: int, held_out: ByteCorpus | TaskSequences) -> dict[str, Any]:
    """Measure the run's last checkpoint; write summary.json and loss_curve.png.

    The figures are those of ``mambabyte eval --bpb ckpt=RUN``, without and with ``protocol=stateful``; the
    second is None for a model whose state grows. ``callbacks.evaluate_bytes`` is eval's ``max_bytes``; if it
    is 0, both are None. Of a task there is the accuracy instead, and no sample.
    """
    device = choose_device("cpu" if settings.trainer.accelerator == "cpu" else "auto")
    model = load_model(settings.run_dir, settings.model)
    rows = read_metrics(settings.run_dir / "metrics.csv")
    curve = settings.run_dir / "loss_curve.png"
    if isinstance(held_out, TaskSequences):
        measured = _task_measured(settings, model, device)
        plot_accuracy_curve(rows, 1 / held_out.task.contents, settings.name, curve)
    else:
        measured = _corpus_measured(settings, model, held_out, device)
        result = measured["validation"]
        final = result["bits_per_byte"] if result else None
        plot_loss_curve(rows, measured["compressors"], final, settings.name, curve)
    summary = {
        "name": settings.name,
        "ckpt": settings.ckpt,
        "step": step,
        "bytes_seen": rows[-1]["bytes"] if rows else None,
        "training_seconds": rows[-1]["seconds"] if rows else None,
        "parameters": model.num_parameters(),
        **measured,
        "run_dir": str(settings.run_dir),
        "loss_curve": str(curve),
    }
    write_summary(settings.run_dir, summary)
    return summary


def _corpus_measured(
    settings: TrainSettings, model: ByteLM, corpus: ByteCorpus, device: torch.device
) -> dict[str, Any]:
    prompt, most = settings.callbacks.sample_prompt, settings.callbacks.evaluate_bytes
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
    return {
        "validation": result and result.to_dict(per_document=False),
        "validation_stateful": stateful and stateful.to_dict(per_document=False),
        "parts": {name: asdict(part) for name, part in by_part(result, corpus).items()} if result else {},
        "worst_document": result and worst_document(result),
        "compressors": compressors,
        "sample": prompt + sample_text(model, prompt, settings.callbacks.sample_bytes),
    }


def _task_measured(settings: TrainSettings, model: ByteLM, device: torch.device) -> dict[str, Any]:
    most, result = settings.callbacks.evaluate_bytes, None
    if most != 0:
        sequences = settings.data.task_sequences(settings.context_length, max_bytes=most)
        print(f"mambabyte: answering {counted(sequences.count, 'sequence')}", file=sys.stderr)
        result = evaluate_task(model, sequences, device=device, progress=progress_bar("answers"))
    return {"validation": result and result.to_dict(), "validation_stateful": None, "compressors": {}}


def worst_document(result: BitsPerByte) -> dict[str, Any] | None:
    """The document that costs the most bits above the average; None if there is no other. (The one with the
    most bits per byte would nearly always be a very short one.)"""
    if result.documents < 2:
        return None
    return asdict(
        max(result.per_document, key=lambda each: (each.bits_per_byte - result.bits_per_byte) * each.bytes)
    )
