"""What a run will take, predicted without writing to its directory."""

from __future__ import annotations

from typing import Any

from mambabyte.runtime.units import byte_count, duration, short_count
from mambabyte.training.distributed.launching import is_main_process
from mambabyte.training.planning.memory_estimate import MemoryBudget, on_meta
from mambabyte.training.planning.peak_flops import peak_flops, utilization
from mambabyte.training.planning.plan import plan
from mambabyte.training.planning.step_timing import fits_one_device, time_steps
from mambabyte.training.settings import TrainSettings


def forecast(settings: TrainSettings) -> dict[str, Any] | None:
    """The figures of a run, in plain JSON: bytes, seconds, floating-point operations.

    Ten steps are timed on this process's device. If only several devices together hold the model, none are,
    and the figures that depend on them are None; among those are the steps of a time budget, which the run
    itself decides by its own speed.

    Returns:
        The figures; None on every rank but the first.

    Raises:
        UserError: a step cannot fit.
    """
    if not is_main_process():
        return None
    run = plan(settings, keep_measurements=False)
    settings, trainer = run.settings, run.settings.trainer
    micro_batch_size = int(trainer.micro_batch_size)
    memory = MemoryBudget.of(settings)
    memory.check(micro_batch_size)
    estimate = memory.estimate(micro_batch_size)
    model = on_meta(memory.config)
    flops = model.flops_per_byte(settings.context_length)
    peak = peak_flops(memory.device, trainer.precision)
    measured = time_steps(settings) if fits_one_device(settings) else None
    step_seconds = measured and measured.seconds_per_step
    speed = step_seconds and trainer.global_batch_bytes / step_seconds
    steps = trainer.max_steps
    by_clock = settings.budget.training_seconds if steps is None else None
    if by_clock is not None and step_seconds:
        steps = run.step + max(1, round((by_clock - run.seconds) / step_seconds))
    total = None if steps is None else steps * trainer.global_batch_bytes
    data = run.data.settings
    corpus = None if data.streaming or data.is_task else run.data.train_corpus().num_bytes
    return {
        "name": settings.name,
        "model": model.kind,
        "parameters": model.num_parameters(),
        "inference_flops_per_byte": flops.inference,
        "training_flops_per_byte": flops.training,
        "training_flops": total and flops.training * total,
        "device": str(memory.device),
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "precision_reason": run.precision_reason,
        "memory": {**vars(estimate), "total": estimate.total, "available": memory.available},
        "fits_comfortably": memory.fits(micro_batch_size),
        "activation_checkpointing": trainer.activation_checkpointing,
        "context_length": settings.context_length,
        "micro_batch_size": micro_batch_size,
        "bytes_per_step": trainer.global_batch_bytes,
        "steps": steps,
        "training_seconds": by_clock,
        "steps_done": run.step,
        "bytes": total,
        "task": data.is_task,
        "corpus_bytes": corpus,
        "epochs": corpus and total and total / corpus,
        "seconds_per_step": step_seconds,
        "seconds": step_seconds and steps and max(0, steps - run.step) * step_seconds,
        "bytes_per_second": speed,
        "measured_peak_memory": measured and measured.peak_memory_bytes,
        "peak_flops": peak.flops,
        "peak_flops_source": peak.source,
        "model_flops_utilization": speed and utilization(speed * flops.training, peak, trainer.world_size),
    }


def describe(run: dict[str, Any]) -> str:
    """:func:`forecast`'s figures in words."""
    memory = {name: "unknown" if size is None else byte_count(size) for name, size in run["memory"].items()}
    device, world, peak = run["device"], run["devices"], run["measured_peak_memory"]
    parts = [f"{memory[part]} {part}" for part in ("weights", "gradients", "optimizer", "activations")]
    recomputed = ", blocks computed again in backward" if run["activation_checkpointing"] else ""
    verdict = "fits" if run["fits_comfortably"] else "fits, with little to spare"
    left = f" for the {run['steps'] - run['steps_done']:,} steps left" if run["steps_done"] else ""
    alone = "; measured on one of them, without what passes between them" if world > 1 else ""
    reason = f" ({run['precision_reason']})" if run["precision_reason"] else ""
    corpus = "sequences of a task" if run["task"] else "a streamed corpus"
    if run["corpus_bytes"] is not None:
        epochs = "" if run["epochs"] is None else f"{run['epochs']:.2f} epochs of "
        corpus = f"{epochs}{byte_count(run['corpus_bytes'])}"
    if run["steps"] is None:
        length = f"as many as the time gives, in steps of {run['bytes_per_step']:,}"
    else:
        about = "about " if run["training_seconds"] else ""
        length = f"{byte_count(run['bytes'])} in {about}{run['steps']:,} steps of {run['bytes_per_step']:,}"
    in_all = "" if run["training_flops"] is None else f"; {run['training_flops']:.3g} FLOP in all"
    lines = {
        "model": f"{run['model']}, {run['parameters']:,} parameters",
        "compute": f"{short_count(run['inference_flops_per_byte'], 'FLOP')} a byte in inference, "
        f"{short_count(run['training_flops_per_byte'], 'FLOP')} in training{in_all}, "
        f"in {run['precision']}{reason}",
        "memory": f"{' + '.join(parts)} (micro-batch {run['micro_batch_size']}{recomputed}) = "
        f"{memory['total']} of {memory['available']} ({device}): {verdict}",
        "bytes": f"{length}, {corpus}",
    }
    if run["seconds"] is None:
        budget = f"{duration(run['training_seconds'])}; " if run["training_seconds"] else ""
        lines["time"] = f"{budget}not measured: one device does not hold the whole model"
    else:
        speed = f"{byte_count(run['bytes_per_second'])}/s, {run['seconds_per_step']:.3g} s a step"
        used, most = run["model_flops_utilization"], f"{short_count(run['peak_flops'], 'FLOP')}/s"
        share = (
            f"{100 * used:.1f} % of {most}" if used is not None else f"a share of {most} that is not known"
        )
        scope = f"{world} x {device}, without validation, samples and checkpoints{alone}"
        lines["time"] = f"{duration(run['seconds'])}{left} on {scope}"
        lines["speed"] = f"{speed}; {share} in {run['precision']} ({run['peak_flops_source']})"
    if peak is not None:
        lines["peak"] = f"{byte_count(peak)} in the steps measured, the program itself included"
    return "\n".join(f"{name:8}{text}" for name, text in lines.items())
