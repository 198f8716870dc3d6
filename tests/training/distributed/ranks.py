"""Runs of the command line on one or two gloo ranks, forked from a process with all imports done.

The ranks find the environment that torchrun gives them, so that a run of two costs no interpreter's start;
tests/training/distributed/test_processes.py starts real ones. This file is also the program that forks.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from tests.driver import watch


class End(NamedTuple):
    codes: list[int]  # of each rank; minus the signal number if a signal killed it
    err: list[str]
    windows: list[list[tuple[int, str]]]  # of each rank: (optimizer step, micro-batch), in order


class Ranks:
    """Starts runs one after the other. Must be closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.distributed.ranks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._count = 0

    def __call__(self, ranks: int, *arguments: str, step: int | None = None, number: int = 0) -> End:
        """Run `mambabyte ARGUMENTS` on so many ranks; the signal `number`, if any, comes to the last of them
        in the second micro-batch of optimizer step `step` + 1."""
        self._count += 1
        folders = [self._folder / f"{self._count}-{rank}" for rank in range(ranks)]
        for folder in folders:
            folder.mkdir()
            (folder / "log").touch()
        request = [list(map(str, arguments)), list(map(str, folders)), step, int(number)]
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the command line's process has ended"
        return End(
            json.loads(answer),
            [(folder / "err").read_text("utf-8", "replace") for folder in folders],
            [
                [tuple(json.loads(line)) for line in (folder / "log").read_text().splitlines()]
                for folder in folders
            ],
        )

    def close(self) -> None:
        self._process.kill()  # between runs, with nothing to finish
        self._process.communicate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment that torchrun sets."""
    values = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    values |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {name: str(value) for name, value in values.items()}


def serve() -> None:
    import mambabyte.cli.main

    for module in ("datasets", "matplotlib.pyplot", "mambabyte.commands.train", "mambabyte.training.trainer"):
        import_module(module)
    while line := sys.stdin.readline():
        arguments, folders, step, number = json.loads(line)
        port, children = free_port(), []
        for rank, folder in enumerate(folders):
            child = os.fork()
            if child == 0:
                if len(folders) > 1:
                    os.environ.update(environment(rank, len(folders), port))
                for path, stream in ((f"{folder}/out", 1), (f"{folder}/err", 2)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
                last = rank == len(folders) - 1
                watch(f"{folder}/log", step if last else None, number)
                sys.argv = ["mambabyte", *arguments]
                sys.exit(mambabyte.cli.main.main(arguments))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    serve()
