"""A run's directory: its lock, its configuration, and the record of the processes that trained it."""

import errno
import fcntl
import json
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

import mambabyte
from mambabyte.errors import UserError
from mambabyte.runs.changes import Changes
from mambabyte.runs.metrics_csv import read_metrics
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.secrets import redact
from mambabyte.runtime.system_errors import cannot_write
from mambabyte.runtime.valid_json import valid_json

T = TypeVar("T", dict, list)


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
        raise cannot_write(run_dir, error, "run_dir=") from error
    with lock, explaining_full_disk(run_dir):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released however the process ends
        except BlockingIOError as error:
            busy = f"another process is training in '{run_dir}'"
            raise UserError(f"{busy}; wait for it, or set name=") from error
        write_config(run_dir, config)
        yield


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write config.yaml, whole or not at all."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    with atomic_write(run_dir / "config.yaml") as file:
        file.write(text.encode())


def has_config(run_dir: Path, config: Mapping[str, Any]) -> bool:
    """Whether the run's config.yaml can be read and has the sections of ``config``."""
    try:
        found = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError, yaml.YAMLError):
        return False
    sections = [key for key, value in config.items() if isinstance(value, Mapping)]
    return isinstance(found, Mapping) and all(isinstance(found.get(key), Mapping) for key in sections)


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


def check_records(run_dir: Path) -> None:
    """Raise UserError if a file of the run that training continues is damaged."""
    read_metrics(run_dir / "metrics.csv")
    _read_sittings(run_dir)


def read_record(path: Path, empty: T, remedy: str) -> T:
    """The JSON mapping or list in a file of a run; ``empty`` if there is no such file.

    Args:
        empty: an empty mapping or list, whichever the file should hold.
        remedy: what to do about a damaged file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, type(empty)):
            raise ValueError(f"it holds no {'mapping' if isinstance(empty, dict) else 'list'}")
    except (FileNotFoundError, NotADirectoryError):
        return empty
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); {remedy}") from error
    return content


def _read_sittings(run_dir: Path) -> list[Any]:
    return read_record(run_dir / "sittings.json", [], "move it away to begin a new record")


def record_sitting(run_dir: Path, step: int, changed: Changes) -> None:
    """Add an entry to sittings.json: when and how a process began to train, from which ``step``, and
    which settings have changed since the checkpoint of that step was written."""
    sitting = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "command": redact(shlex.join(sys.argv)),
        "mambabyte": mambabyte.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "changed": changed,
    }
    text = valid_json([*_read_sittings(run_dir), sitting], indent=2)
    with atomic_write(run_dir / "sittings.json") as file:
        file.write(text.encode() + b"\n")
