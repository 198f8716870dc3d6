"""How long benchmarks/tournament.py will take here, from a few steps of each model."""

from __future__ import annotations

import statistics
import time

import torch
from tournament_runs import CURVE, Plan
from tournament_space import MODELS, settings_of

from mambabyte.models.training_flops import training_flops_per_byte
from mambabyte.training.settings import TrainSettings

_AROUND = 7.0  # seconds of a run beside its training: starting, reading its data, writing a checkpoint
_PROTOCOLS = 2  # by which the end of a winner's run is measured: disjoint, and stateful of a recurrent model


def estimate(plan: Plan, processes: int) -> str:
    """A table of seconds, and the hours of the whole."""
    size, corpora = plan.size, len(plan.corpora)
    lines = [f"{'model':14}{'GFLOP/s':>10}{'a trial, s':>12}{'a final, s':>12}"]
    side_by_side = alone = 0.0
    for name in plan.models:
        speed = flops_per_second(plan, name)
        reading = per_byte(plan, name) / 3 / speed  # seconds of a byte, forward alone
        trial = size.trial_flops / speed + _AROUND + size.validate_bytes * reading
        measuring = _AROUND + _PROTOCOLS * (size.evaluate_bytes or 0) * reading
        final = size.final_flops / speed + measuring + CURVE * size.validate_bytes * reading
        lines.append(f"{name:14}{speed / 1e9:10.1f}{trial:12.0f}{final:12.0f}")
        side_by_side += corpora * (plan.trials * trial + len(plan.seeds) * final)
        alone += corpora * len(plan.seeds) * (size.final_seconds + measuring)
    hours = (side_by_side / processes + alone) / 3600
    count, seeds = len(plan.models) * corpora, len(plan.seeds)
    together = side_by_side / processes / 3600
    lines += [
        f"{count * plan.trials} trials, {count * seeds} runs at equal compute, {processes} at a time: "
        f"{together:.1f} h",
        f"{count * seeds} runs at equal time, alone: {alone / 3600:.1f} h; in all {hours:.1f} h",
        "from a few steps at the centre of the search space, on one thread, with nothing beside them",
    ]
    return "\n".join(lines)


def flops_per_second(plan: Plan, name: str) -> float:
    """Of training steps at the centre of the search space, one thread, fp32."""
    centre, settings = plan.size.centre, _settings(plan, name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        model = settings.model.build()
        optimizer = settings.optimizer.build(model)
        rows = centre.batch_bytes // centre.context_length
        bytes = torch.randint(256, (rows, centre.context_length + 1))
        seconds = []
        for _ in range(4):
            begin = time.process_time()
            nats, auxiliary = model.training_loss(bytes[:, :-1], bytes[:, 1:])
            (nats.mean() if auxiliary is None else nats.mean() + auxiliary).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - begin)
    finally:
        torch.set_num_threads(threads)
    return per_byte(plan, name) * centre.batch_bytes / statistics.median(seconds[1:])


def per_byte(plan: Plan, name: str) -> float:
    """FLOPs of training, at the centre of the search space."""
    settings = _settings(plan, name)
    return training_flops_per_byte(settings.model, settings.context_length)


def _settings(plan: Plan, name: str) -> TrainSettings:
    overrides = settings_of(MODELS[name], plan.size, plan.size.centre)
    return TrainSettings.compose(*overrides, *plan.overrides)
