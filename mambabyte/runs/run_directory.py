"""A run's directory: its lock and its configuration."""

import errno
import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mambabyte.errors import UserError
from mambabyte.runtime.atomic_write import atomic_write

# The settings that determine the weights, which a resumed run must keep, and the exceptions among them.
_FIXED_SECTIONS = ("model", "data", "context_length", "seed")
_MAY_CHANGE = (
    *("data.workers", "data.folder", "data.retries", "data.source.retries"),
    *("data.revision", "data.source.revision"),  # the data module compares the data itself
)


def check_same_run(run_dir: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise UserError if ``config`` has another model, data, seed or bytes per step than ``saved``, the
    configuration of the run in ``run_dir``. Steps, learning rate, devices and logging may change."""
    before, now = _fixed(saved), _fixed(config)
    different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if different:
        changes = ", ".join(f"{key} ({before.get(key)} there, {now.get(key)} now)" for key in different)
        raise UserError(
            f"'{run_dir}' holds a run with another configuration: {changes}; give the new run its own name=, "
            "or go back to that configuration to resume"
        )


@contextmanager
def lock_run_directory(run_dir: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Create ``run_dir``, lock it against other training processes, and write its config.yaml.

    Raises:
        UserError: the directory cannot be written, or another process is training in it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to '{run_dir}': {error.strerror}; choose another run_dir=") from error
    with lock, explaining_full_disk(run_dir):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released however the process ends
        except BlockingIOError as error:
            busy = f"another process is training in '{run_dir}'"
            raise UserError(f"{busy}; wait for it, or set name=") from error
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        with atomic_write(run_dir / "config.yaml") as file:
            file.write(text.encode())
        yield


@contextmanager
def explaining_full_disk(run_dir: Path) -> Iterator[None]:
    """Raise the system's error about a full disk as a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space is left for '{run_dir}': free some and repeat the command; its checkpoints are intact"
        ) from error


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    fixed = _flat({name: config.get(name) for name in _FIXED_SECTIONS})
    fixed["trainer.global_batch_bytes"] = config["trainer"]["global_batch_bytes"]
    return {name: value for name, value in fixed.items() if name not in _MAY_CHANGE}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
