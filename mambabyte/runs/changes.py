"""How a run's settings differ from those that it was trained with, and which of them may."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from mambabyte.config.settings import find_class, shown, to_plain
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError

Changes = dict[str, tuple[Any, Any]]  # by key: the recorded value and the new one

# Everything else decides the weights, so a run keeps it to its end. A name stands for all below it, too.
_MAY_CHANGE = (
    *("name", "budget", "logger", "callbacks"),  # what a budget decides is compared itself
    *("data.workers", "data.folder", "data.source.retries"),
    "data.source.revision",  # the data module compares the data itself
    *("trainer.max_steps", "trainer.micro_batch_size", "trainer.on_spike", "trainer.spike_threshold"),
    "optimizer.decay_from",
    *("trainer.threads", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.sharded_checkpoints", "trainer.activation_checkpointing"),
)
_UNORDERED = ("freeze", "lora.targets")  # lists whose order means nothing
_OF_ONE_COMMAND = ("run_dir", "dry_run", "json")


def changes(recorded: Mapping[str, Any], settings: Any) -> Changes:
    """The settings that differ from a run's ``recorded`` configuration, perhaps of an earlier version: what
    did not exist then had its default."""
    recorded = with_new_names(recorded)
    data = DataSettings.from_settings(recorded.get("data"), "data")
    recorded["data"] = to_plain(data.with_absolute_paths())
    settings = replace(settings, data=settings.data.with_absolute_paths())
    then, now = _flat(_as_now(recorded, settings)), _flat(to_plain(settings))
    for key in _UNORDERED:
        if _is_same_set(then.get(key), now.get(key)):
            then[key] = now[key]
    differing = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    return {key: (then.get(key), now.get(key)) for key in differing if key not in _OF_ONE_COMMAND}


def _is_same_set(then: Any, now: Any) -> bool:
    both = isinstance(then, list) and isinstance(now, list)
    return both and sorted(map(str, set(then))) == sorted(map(str, set(now)))


def refuse_recorded_run(run_dir: Path, settings: Any, model: Any) -> None:
    """Raise UserError if config.yaml says that the run, which has checkpoints, must keep other settings.

    Imports no torch. The newest checkpoint has the last word, so a file that cannot be read refuses nothing.

    Args:
        settings: all but the model's.
        model: the plain ``model`` section; compared are the keys that the file has too.
    """
    import yaml  # a tenth of a second that `mambabyte --help` need not wait

    try:
        if not any((run_dir / "checkpoints").glob("step_*.ckpt")):
            return
        recorded = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        changed = changes(recorded, settings)
        if settings.trainer.precision == "auto":  # that of the run
            changed.pop("trainer.precision", None)
        target = model["_target_"].removeprefix("mambabyte.models.")
        # others may mean anything, and this one any model
        ours = target.isidentifier() and target != "OfCheckpoint"
        if ours and settings.budget.parameters is None:  # which decides the widths
            then, now = _flat(recorded["model"]), _flat(model)
            both = {f"model.{key}": (then[key], now[key]) for key in sorted(then.keys() & now.keys())}
            changed |= {key: values for key, values in both.items() if values[0] != values[1]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError, UserError):
        return
    refuse_other_run(run_dir, changed)


def refuse_other_run(run_dir: Path, changed: Changes) -> None:
    """Raise UserError if settings have changed that a run must keep."""
    fixed = {key: values for key, values in changed.items() if not _may_change(key)}
    if fixed:
        raise UserError(
            f"'{run_dir}' holds a run with another configuration: {in_words(fixed, 'there')}; give the new "
            "run its own name=, or go back to that configuration to resume"
        )


def in_words(changed: Changes, then: str) -> str:
    """ "seed (0 there, 1 now), ..."."""
    return ", ".join(
        f"{key.replace('data.source.parts.', 'data.parts.')} ({_written(old)} {then}, {_written(new)} now)"
        for key, (old, new) in changed.items()
    )


def _written(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _may_change(key: str) -> bool:
    if re.fullmatch(r"data\.source\.parts\.[^.]+\.retries", key):  # of a mixture's part
        return True
    return any(key == name or key.startswith(f"{name}.") for name in _MAY_CHANGE)


def with_new_names(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A run's recorded configuration, perhaps of an earlier version, with the keys of today."""
    renamed = {"ckpt": None, "freeze": [], "lora": None, **recorded}  # which the first versions did not have
    callbacks, logger = renamed.get("callbacks"), renamed.get("logger")
    if isinstance(callbacks, Mapping) and "validation_bytes" in callbacks:
        renamed["callbacks"] = {"validate_bytes": callbacks["validation_bytes"], **callbacks}
    if isinstance(logger, Mapping) and logger.get("service") in ("wandb", "tensorboard"):
        renamed["logger"] = {logger["service"]: True, **logger}
    return renamed


def _as_now(recorded: Any, now: Any) -> Any:
    """The record of the settings ``now`` with the keys that this version writes."""
    if not isinstance(recorded, Mapping):
        return recorded
    if is_dataclass(now):
        known = {field.name: getattr(now, field.name) for field in fields(now)}
        defaults = _defaults(type(now))
        written = {key: value for key, value in recorded.items() if key in known}
        if hasattr(now, "to_dict"):
            written["_target_"] = recorded.get("_target_", now.to_dict()["_target_"])
    elif isinstance(now, Mapping) and str(now.get("_target_")).startswith("mambabyte."):
        known, written = dict(now), dict(recorded)
        defaults = _defaults(find_class(now["_target_"], "_target_"))
    else:
        return recorded
    absent = {key: defaults.get(key, to_plain(value)) for key, value in known.items() if key not in written}
    return {key: _as_now(value, known.get(key)) for key, value in {**absent, **written}.items()}


def _defaults(schema: type) -> dict[str, Any]:
    """The plain default values of a dataclass's fields."""
    defaults: dict[str, Any] = {}
    for field in fields(schema) if is_dataclass(schema) else ():
        if field.default is not MISSING:
            defaults[field.name] = to_plain(field.default)
        elif field.default_factory is not MISSING:
            defaults[field.name] = to_plain(field.default_factory())
    return defaults


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
