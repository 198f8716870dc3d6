"""The end of a run by the clock: ``budget.training_seconds`` where ``trainer.max_steps`` is null.

How many steps fit is not known when a run begins, so the end is decided late: after the warm-up the learning
rate stays constant until all but ``budget.decay_share`` of the time has gone, and then falls over as many
steps as fit into the rest (warm-up, constant, decay: MiniCPM, arXiv 2404.06395, section 4). The decision is
written to ``run_dir/schedule.json`` before it is followed, so a run stopped later ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from mambabyte.errors import UserError
from mambabyte.runs.run_directory import read_record
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.valid_json import valid_json
from mambabyte.training.settings import BudgetSettings, TrainSettings

_FILE = "schedule.json"
_REMEDY = "remove it to let the end be decided anew"
_MOST_STEPS = 10**9  # as trainer.max_steps


@dataclass(frozen=True)
class End:
    """The optimizer steps after which the learning rate falls, and after which training ends."""

    decay_from: int
    max_steps: int

    def applied_to(self, settings: TrainSettings) -> TrainSettings:
        return replace(
            settings,
            trainer=replace(settings.trainer, max_steps=self.max_steps),
            optimizer=replace(settings.optimizer, decay_from=self.decay_from),
        )

    def recorded_in(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A run's plain configuration with this end."""
        trainer = {**config["trainer"], "max_steps": self.max_steps}
        optimizer = {**config["optimizer"], "decay_from": self.decay_from}
        return {**config, "trainer": trainer, "optimizer": optimizer}


def decide_end(step: int, seconds_left: float, seconds_per_step: Sequence[float]) -> End:
    """The end of a run whose learning rate falls from ``step`` on: after as many further steps as fit into
    the time left at the median speed of recent steps, which a busy moment does not change; one at least."""
    fitting = round(seconds_left / max(median(seconds_per_step), 1e-9))
    return End(step, min(step + max(1, fitting), _MOST_STEPS))


def write_end(run_dir: Path, budget: BudgetSettings, end: End) -> None:
    """Write schedule.json, which is on the disk when this returns."""
    with atomic_write(run_dir / _FILE) as file:
        file.write(valid_json({**asdict(end), "budget": _question(budget)}, indent=2).encode() + b"\n")


def with_known_end(
    settings: TrainSettings, recorded: dict[str, Any]
) -> tuple[TrainSettings, dict[str, Any], str | None]:
    """The settings of a run whose time is its budget, with its end if that has been decided.

    Args:
        recorded: the configuration in the run's newest checkpoint; empty if there is none.

    Returns:
        The settings; ``recorded``, with the end too if it was saved before that was decided; and what to tell
        the user about it, if anything.

    Raises:
        UserError: schedule.json is damaged.
    """
    budget, steps = settings.budget, settings.trainer.max_steps
    if budget.training_seconds is None:
        return settings, recorded, None
    fixed = _fixed_by_an_earlier_version(recorded, budget, steps)
    if fixed is not None:
        kept = replace(settings, trainer=replace(settings.trainer, max_steps=fixed))
        said = f"the run keeps its {fixed:,} steps, which were fixed when it began under an earlier version"
        return kept, recorded, said
    seconds = f"budget.training_seconds={budget.training_seconds:g}"
    if steps is not None:
        said = f"trainer.max_steps={steps:,} ends the run, not {seconds}: that needs trainer.max_steps=null"
        return settings, recorded, said
    alike = _section(recorded, "budget", _question(budget)) == _question(budget)
    then = recorded.get("trainer", {}).get("max_steps"), recorded.get("optimizer", {}).get("decay_from")
    end = _read_end(settings.run_dir, budget)
    if end is None and alike and all(type(number) is int for number in then):
        end = End(max_steps=then[0], decay_from=then[1])
    if end is None:
        return settings, recorded, None
    if alike and recorded and then[0] is None:
        recorded = end.recorded_in(recorded)
    return end.applied_to(settings), recorded, None


def refuse_time_spent(settings: TrainSettings, step: int, seconds: float) -> None:
    """Raise UserError if the end of a run is not decided but its time has been spent before ``step``."""
    budget = settings.budget.training_seconds
    if settings.trainer.max_steps is None and budget is not None and seconds >= budget:
        raise UserError(
            f"run '{settings.name}' has trained for {seconds:.0f} s already, and budget.training_seconds="
            f"{budget:g}: raise it, or set trainer.max_steps={step} to end it there, or give the new run its "
            "own name="
        )


def _question(budget: BudgetSettings) -> dict[str, Any]:
    return {"training_seconds": budget.training_seconds, "decay_share": budget.decay_share}


def _section(config: Mapping[str, Any], name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Those ``keys`` of a section of a recorded configuration that it has."""
    section = config.get(name)
    return {key: section[key] for key in keys if key in section} if isinstance(section, Mapping) else {}


def _fixed_by_an_earlier_version(
    recorded: Mapping[str, Any], budget: BudgetSettings, steps: int | None
) -> int | None:
    """The steps of a run that began when the steps of a time budget were measured at the start, or when
    experiment=quickstart had a number of them; None for other runs and if a number is asked for."""
    then = _section(recorded, "budget", _question(budget))
    fixed = recorded.get("trainer", {}).get("max_steps")
    if not recorded or "decay_share" in then or type(fixed) is not int:
        return None
    same = then.get("training_seconds") == budget.training_seconds  # steps counted for nothing then
    return fixed if steps is None or same else None


def _read_end(run_dir: Path, budget: BudgetSettings) -> End | None:
    """The end in schedule.json; None if there is none, or that of another budget."""
    path = run_dir / _FILE
    record = read_record(path, {}, _REMEDY)
    if not record:
        return None
    decay_from, max_steps = record.get("decay_from"), record.get("max_steps")
    if type(decay_from) is not int or type(max_steps) is not int or not 0 < decay_from < max_steps:
        raise UserError(f"'{path}' cannot be read (it does not say where the run ends); {_REMEDY}")
    return End(decay_from, max_steps) if record.get("budget") == _question(budget) else None
