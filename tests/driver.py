"""Runs of the command line that note what they train on and are ended in the middle of an optimizer step.

This file is also a program: it imports what training needs once, and starts each run by a fork, since a dozen
fresh interpreters would take a minute. What it imports sees the environment it was started with.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    code: int  # minus the signal, if it died of one
    out: str
    err: str


class Runs:
    """Starts runs of the command line, one after the other. `close` it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    def __call__(
        self,
        *arguments: str,
        log: Path,
        step: int | None = None,
        number: int = 0,
        begin: str | None = None,
        calls: int = 0,
        spoilt: Sequence[int] = (),
    ) -> Run:
        """Run `mambabyte ARGUMENTS`, its micro-batches noted in `log`.

        The signal `number`, if any, comes in the second micro-batch of optimizer step `step` + 1. SIGKILL
        comes so many `calls` of functions, Python's and C's, after the `begin` of training or of the first
        checkpoint ("training", "saving"). The losses of `spoilt` steps, from 1, are not finite.
        """
        out, err = self._folder / "out", self._folder / "err"
        with log.open("a") as file:
            print("null", file=file)
        watched = {"log": str(log), "step": step, "number": int(number), "spoilt": list(spoilt)}
        request = [list(map(str, arguments)), watched, begin, calls, str(out), str(err)]
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the command line's process has ended"
        self.last = Run(int(answer), out.read_text("utf-8", "replace"), err.read_text())
        return self.last

    def close(self) -> None:
        self._process.kill()  # between runs, with nothing to finish
        self._process.communicate()


def windows(log: Path) -> list[tuple[int, str]]:
    """(optimizer step, micro-batch) as trained on last: what was lost with a killed run was done again."""
    kept: list[tuple[int, str]] = []
    begins = False
    for entry in map(json.loads, log.read_text().splitlines()):
        if entry is None:  # another run begins here
            begins = True
            continue
        if begins:
            kept = [earlier for earlier in kept if earlier[0] < entry[0]]
        kept.append((entry[0], entry[1]))
        begins = False
    return kept


def watch(log: str, step: int | None, number: int, spoilt: Sequence[int] = ()) -> None:
    from mambabyte.training.module import ByteLMModule

    original, micro_batches = ByteLMModule.training_step, []

    def training_step(self, batch, batch_index):
        content = batch["bytes"].numpy().tobytes() + batch["targets"].numpy().tobytes()
        with open(log, "a") as file:
            print(json.dumps([self.global_step, hashlib.sha256(content).hexdigest()]), file=file)
        if self.global_step == step:
            micro_batches.append(batch_index)
            if len(micro_batches) == 2:
                send(number)
        loss = original(self, batch, batch_index)
        return loss * float("nan") if self.global_step + 1 in spoilt else loss

    ByteLMModule.training_step = training_step


def die_in(calls: int, begin: str) -> None:
    from mambabyte.training.callbacks.checkpoints import Checkpoints
    from mambabyte.training.module import ByteLMModule

    owner, name = {"training": (ByteLMModule, "on_train_start"), "saving": (Checkpoints, "save")}[begin]
    original, left = getattr(owner, name), calls

    def count(frame, event, argument) -> None:
        nonlocal left
        left -= event in ("call", "c_call")
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def begun(*arguments):
        sys.setprofile(count)
        return original(*arguments)

    setattr(owner, name, begun)


def send(number: int) -> None:
    """SIGKILL to this process alone; another signal to its workers too, as from a terminal or a scheduler."""
    processes = [os.getpid()]
    if number != 9:
        processes += [worker.pid for worker in multiprocessing.active_children()]
    subprocess.run(["kill", f"-{number}", *map(str, processes)], check=True)


def serve() -> None:
    import mambabyte.cli.main

    for module in ("datasets", "matplotlib.pyplot", "mambabyte.commands.train", "mambabyte.training.trainer"):
        import_module(module)
    while line := sys.stdin.readline():
        arguments, watched, begin, calls, out, err = json.loads(line)
        child = os.fork()
        if child == 0:
            for path, stream in ((out, 1), (err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            watch(**watched)
            if begin:
                die_in(calls, begin)
            sys.argv = ["mambabyte", *arguments]
            sys.exit(mambabyte.cli.main.main(arguments))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
