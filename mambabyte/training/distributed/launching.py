"""A run's processes: their number, this one's rank, and their common end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from mambabyte.errors import UserError
from mambabyte.training.settings import TrainerSettings

POLL_SECONDS = 0.5
ENDED = "all processes of this run end with it; the last checkpoint is intact: repeat the command"


def resolve_devices(config: TrainerSettings) -> TrainerSettings:
    """``config`` with numbers for ``auto`` devices and nodes: as torchrun or srun has started, otherwise this
    machine's.

    Raises:
        UserError: the configuration asks for other numbers than torchrun or srun has started.
    """
    launcher, devices, nodes = _launched(config)
    resolved = replace(
        config,
        devices=devices if config.devices == "auto" else config.devices,
        num_nodes=nodes if config.num_nodes == "auto" else config.num_nodes,
    )
    if launcher and (resolved.devices, resolved.num_nodes) != (devices, nodes):
        raise UserError(
            f"{launcher} has started {devices} processes on each of {nodes} nodes, but the configuration has "
            f"trainer.devices={config.devices} and trainer.num_nodes={config.num_nodes}: use trainer=ddp or "
            "trainer=fsdp, which count them"
        )
    return resolved


def _launched(config: TrainerSettings) -> tuple[str | None, int, int]:
    """The launcher, if there is one; the processes on each node; the nodes."""
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return "torchrun", local, int(os.environ["WORLD_SIZE"]) // local
    if started_by_srun():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return "srun", int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    gpus = 0 if config.accelerator == "cpu" else torch.cuda.device_count()
    return None, max(1, gpus), 1


def started_by_srun() -> bool:
    """Whether this process is a task of a SLURM step and torchrun was not started in between."""
    return not TorchElasticEnvironment.detect() and SLURMEnvironment.detect()


def is_main_process() -> bool:
    """Whether this process has rank 0, by the environment: no process group is needed."""
    if TorchElasticEnvironment.detect():
        return os.environ["RANK"] == "0"
    if started_by_srun():
        return os.environ["SLURM_PROCID"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("NODE_RANK", "LOCAL_RANK"))


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher, except that this process reports the loss of another rank before it exits."""

    def __init__(self, strategy: Any) -> None:
        super().__init__(strategy.cluster_environment, strategy.num_processes, strategy.num_nodes)

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        if self.cluster_environment.creates_processes_externally:
            exit_on(partial(_launcher_gone, os.getppid()))
        else:
            self._call_children_scripts()
            exit_on(partial(_other_rank_gone, self.procs))
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _call_children_scripts(self) -> None:
        if sys.argv[1:2] != ["train"]:  # a script or a notebook
            raise UserError(
                "trainer.devices above 1 from Python needs torchrun, which starts it once per rank; or "
                "use the command line: mambabyte train trainer=ddp"
            )
        # the main program may be submitit's, but the other ranks must run ours
        program = sys.modules["__main__"]
        own, program.__spec__ = program.__spec__, find_spec("mambabyte.__main__")
        try:
            super()._call_children_scripts()
        finally:
            program.__spec__ = own


def exit_on(problem: Callable[[], str | None]) -> None:
    """Exit with the sentence that ``problem`` returns once it is not None; an empty one ends the watch."""

    def watch() -> None:  # in a thread, since the main one may be blocked in a collective with a lost rank
        while (sentence := problem()) is None:
            time.sleep(POLL_SECONDS)
        if sentence:
            print(f"mambabyte: {sentence}", file=sys.stderr, flush=True)
            os._exit(UserError.exit_code)

    threading.Thread(target=watch, daemon=True).start()


def _launcher_gone(parent: int) -> str | None:
    # the parent is torchrun or the rank 0 that started this process: neither kills its processes when it dies
    if os.getppid() == parent:
        return None
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    return f"the launcher of this process, rank {rank}, has ended; {ENDED}"


def _other_rank_gone(processes: Sequence[subprocess.Popen]) -> str | None:
    codes = [process.poll() for process in processes]
    for rank, code in enumerate(codes, start=1):
        if code:
            for process in processes:
                process.kill()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            return f"rank {rank} {how}; {ENDED}"
    return None if None in codes else ""


def lost_rank(error: BaseException) -> UserError | None:
    """The process group's error about a lost rank as one sentence; None for any other error."""
    gloo = isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    if not (gloo or isinstance(error, torch.distributed.DistError)):
        return None
    reason = str(error).strip().splitlines()[0]
    detail = "" if re.search(r"Connection (closed|reset) by peer", reason) else f" ({reason})"
    return UserError(f"another rank of this run has gone{detail}; {ENDED}")


class SameCheckpoint(Callback):
    """Refuses to train if the ranks resume from different checkpoints."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        steps = torch.tensor([step, -step], device=trainer.strategy.root_device)
        last, first = trainer.strategy.reduce(steps, reduce_op="max").tolist()
        if last != -first:
            raise UserError(
                f"the ranks of this run resume from different checkpoints (step {-first} and step {last}): "
                "run_dir must lie on a file system that all nodes share"
            )
