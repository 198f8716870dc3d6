"""Hydra around one command: composes its configuration, and runs the jobs of a sweep."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mambabyte.cli.faults import sentence
from mambabyte.commands import Command
from mambabyte.config.overrides import quoted
from mambabyte.errors import Interrupted, UserError
from mambabyte.runtime.secrets import redact, refuse_secrets

if TYPE_CHECKING:
    from omegaconf import DictConfig

SUBMITIT = "hydra_plugins.hydra_submitit_launcher."
BASIC = ".BasicLauncher"  # runs all jobs in this process
GRID = ".BasicSweeper"  # runs all combinations, whatever the jobs return
LONGEST_NAME = 200  # bytes; a file system ends at 255


class _Escaped(BaseException):
    """Carries a job's exception past Hydra, which would print a line of its own or continue the sweep."""


class _Failures:
    """Faults of a sweep's jobs: each is said before the next job begins, the last is left to raise."""

    def __init__(self, explained: Callable[[Exception], object]) -> None:
        self._explained = explained
        self._last: Exception | None = None
        self._to_raise: Exception | None = None

    def add(self, fault: Exception) -> None:
        self._last = fault

    def say(self) -> None:
        if self._last is None:
            return
        if said := self._explained(self._last):
            print(f"mambabyte: {redact(str(said))}", file=sys.stderr)
            self._to_raise = self._to_raise or UserError("a job of the sweep failed, as said above")
        else:  # a mistake of the program's own, with its traceback
            self._to_raise = self._last
        self._last = None

    def to_raise(self) -> Exception | None:
        ours = self._to_raise if not isinstance(self._to_raise, UserError) else None
        return ours or self._last or self._to_raise


def run_hydra(name: str, command: Command, overrides: list[str], flags: list[str]) -> None:
    """Run the command on what Hydra composes from ``overrides``, once or for each job of a sweep.

    Raises:
        UserError: what the command raises, and mistakes in the configuration.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from mambabyte.config import composition
    from mambabyte.config.explanations import explain

    def job(composed: DictConfig) -> Any:
        settings = HydraConfig.get()
        sweeping = settings.mode == RunMode.MULTIRUN
        searching = sweeping and not settings.sweeper._target_.endswith(GRID)
        failures.say()
        try:
            arguments = list(settings.overrides.task)
            if searching and (fault := nothing_to_search(settings.sweeper, overrides)):
                raise _Escaped from fault
            if searching and (fault := nothing_to_minimise(name, composed)):
                raise _Escaped from fault
            if sweeping and name == "train":
                check_devices(composed, settings.launcher._target_)
                arguments.append(own_run_dir(composed, settings.job.override_dirname))
                arguments.append("hydra.mode=RUN")  # whatever launcher= says
            # Lightning starts the other ranks with this program's arguments: those of this job alone.
            arguments += [flag for flag in flags if flag.startswith("--config-dir=")]
            sys.argv = [program[0], *name.split(" "), *arguments]
            schema: Any = command.settings
            found = command.run(schema.from_composed(composed, settings.runtime.choices, command.check))
            if searching and found is not None:
                searched.append((found, str(composed.run_dir)))
            return found
        except Exception as fault:
            if sweeping and not isinstance(fault, Interrupted):
                if settings.launcher._target_.endswith(BASIC):
                    failures.add(fault)  # Hydra would print its own line before it raised the first
                    return math.inf  # the worst there is, for a search
                raise
            if settings.launcher._target_.startswith(SUBMITIT):
                # The run is saved: submitit's handler queues the job again, and exits.
                signal.raise_signal(signal.SIGUSR1)
            raise _Escaped from fault

    searched: list[tuple[float, str]] = []
    failures = _Failures(lambda fault: sentence(fault) or explain(fault, overrides))
    for override in overrides:  # Hydra writes a sweep's to a file before any job begins
        key, _, value = override.partition("=")
        if key not in command.settings.not_kept:  # type: ignore[attr-defined]
            refuse_secrets({key: value})
        if key in ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs") and re.fullmatch(r"0+|-\d+", value):
            raise UserError(f"{key} must be at least 1, not {value}")
    if "sweeper=optuna" in overrides and find_spec("optuna"):
        import_module("optuna.logging").set_verbosity(logging.WARNING)  # its notes are no news to the user
    # PyTorch's large tensors in huge pages: without them, fresh memory costs a third of a long scan's time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # tells its jobs to save
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints its exceptions and exits, instead of raising them
    program = sys.argv
    sys.argv = [program[0], *overrides, *flags]
    fault: BaseException | None = None
    try:
        hydra.main(
            version_base="1.3",
            config_path=str(composition.config_dir()),
            config_name=command.settings.yaml,  # type: ignore[attr-defined]
        )(job)()
    except _Escaped as escaped:
        fault = escaped.__cause__
    except Exception as raised:
        fault = raised
    finally:
        sys.argv = program
    if searched:
        failures.say()
        best, folder = min(searched)
        said = f"the best of {len(searched)} jobs is {redact(folder)}, with {best:.4f} bits per byte"
        print(f"mambabyte: {said}", file=sys.stderr)
    fault = fault or failures.to_raise()
    if fault is not None:
        raise explain(fault, overrides) or fault


def check_devices(composed: DictConfig, launcher: str) -> None:
    """Hydra's launcher runs all jobs in this process, so the second would join the first's process group."""
    devices = composed.trainer.get("devices", 1)
    if launcher.endswith(BASIC) and devices not in (1, "1"):
        raise UserError(
            f"-m runs its jobs in one process, which cannot use trainer.devices={devices} twice; "
            "set trainer.devices=1, give each job a process by launcher=submitit_local or submitit_slurm, or "
            "start the jobs one by one"
        )


def nothing_to_search(sweeper: DictConfig, overrides: list[str]) -> UserError | None:
    """That neither the sweeper's own settings nor an override has values to choose from; None if one has."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if any(sweeper.get(key) for key in ("params", "search_space", "custom_search_space")):
        return None
    if any(each.is_sweep_override() for each in OverridesParser.create().parse_overrides(overrides)):
        return None
    return UserError(
        "a search has nothing to choose: give a setting several values, as in model.d_model=48,64,96, or a "
        "range, as in 'optimizer.learning_rate=interval(1e-3,2e-2)'"
    )


def nothing_to_minimise(name: str, composed: DictConfig) -> UserError | None:
    """What is wrong with a search whose jobs would have no bits per byte to compare; None if they have."""
    if name != "train":
        return UserError("a search is for the jobs of mambabyte train alone: leave the sweeper out")
    left_out = "dry_run=true" if composed.dry_run else None
    if composed.callbacks.get("evaluate_bytes") == 0:
        left_out = "callbacks.evaluate_bytes=0"
    why = f"a search minimises the validation bits per byte, which {left_out} leaves out: remove it"
    return UserError(why) if left_out else None


def own_run_dir(composed: DictConfig, job: str) -> str:
    """Give a job of a sweep a run directory below the sweep's; return the override that says the same."""
    name = job.encode("utf-8", "surrogateescape")
    if len(name) > LONGEST_NAME:
        head = name[: LONGEST_NAME - 13].decode("utf-8", "ignore")
        job = f"{head}-{hashlib.sha256(name).hexdigest()[:12]}"
    if job:
        composed.run_dir = f"{composed.run_dir}/{job.replace('/', '_')}"
    print(f"mambabyte: job in {redact(str(composed.run_dir))}", file=sys.stderr)
    return f"run_dir={quoted(composed.run_dir)}"
