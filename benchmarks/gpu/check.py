"""`make gpu-check`: every stage in a process of its own, one after the other, and the table last.

    python benchmarks/gpu/check.py [--dry] [--seconds 530] [--only scan,step] [--folder FOLDER]

Nothing is installed from the network: `scripts/pack_gpu_check.sh` packs wheels and the peers' sources
beforehand, into gpu-check-packed/. Packages that are missing come from there, and the peers are compiled
in the background. Results go to $OUT, else gpu-check-results/: results.jsonl, table.md, profile.txt and
log.txt. A stage that fails or runs out of time is noted and the next one begins; what a stage leaves of
its time, the others share.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from build_peers import EXTENSIONS
from stage import FOLDER, parser
from table import read, table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKED = ROOT / "gpu-check-packed"
BUILT = ROOT / "build" / "gpu-check"  # kept, so that a second run need not build again
SITE, PEERS = BUILT / "site", BUILT / "peers"
LAST = 5.0  # seconds for the table
LEAST = 2.0  # seconds with which a stage is begun
FAULTS = ("failed", "its time was over", "not done in time", "no time left")  # in notes


class Share(NamedTuple):
    """A stage's seconds of the whole, and whether it needs the peers."""

    seconds: float
    peers: bool


STAGES = {
    "machine": Share(15, False),
    "marked_tests": Share(115, False),
    "gradients": Share(30, True),
    "scan": Share(60, True),
    "ssd": Share(15, True),
    "elementwise": Share(20, True),
    "step": Share(110, True),
    "generation": Share(75, True),
    "commands": Share(90, False),
}
SECONDS = sum(share.seconds for share in STAGES.values())


class Check:
    def __init__(self, dry: bool, seconds: float, folder: Path) -> None:
        self.dry, self.folder = dry, folder.resolve()
        self._end = time.monotonic() + seconds - LAST
        self._started: list[subprocess.Popen] = []
        self._builders: dict[str, subprocess.Popen] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("results.jsonl", "table.md", "profile.txt", "log.txt"):
            (self.folder / name).unlink(missing_ok=True)
        path = [ROOT, SITE, PEERS, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTHONUNBUFFERED": "1",
        }

    def note(self, what: str, note: str) -> None:
        print(f"check: {what}: {note}", flush=True)
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps({"stage": "check", "case": what, "note": note}) + "\n")

    def prepare(self) -> None:
        """Install the packed wheels of packages that are missing, and begin to build the peers."""
        wheels = [wheel for wheel in sorted(PACKED.glob("*.whl")) if not installed(wheel.name.split("-")[0])]
        if wheels:
            command = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(SITE)]
            done = subprocess.run([sys.executable, *command, "--upgrade", *map(str, wheels)])
            if done.returncode:
                self.note("packed wheels", f"failed: pip's exit code {done.returncode}")
        for package in EXTENSIONS:
            command = [sys.executable, str(HERE / "build_peers.py"), str(PACKED), str(PEERS), package]
            self._builders[package] = self._start(command, self.folder / "log.txt")

    def wait_for_peers(self) -> None:
        """At most a fifth of the time that is left; then the builds are ended."""
        until = time.monotonic() + (self._end - time.monotonic()) / 5
        for package, builder in self._builders.items():
            try:
                code = builder.wait(max(until - time.monotonic(), 0.1))
                archives = ", ".join(path.name for path in PACKED.glob(f"{package}-*.tar.gz"))
                failed = f"failed: exit code {code}, see log.txt"
                self.note(f"building {package}", failed if code else f"built from {archives}")
            except subprocess.TimeoutExpired:
                end(builder)
                self.note(f"building {package}", "not done in time")
        self._builders.clear()

    def run(self, stage: str, share: float) -> None:
        """Run a stage in this share of the time that is left."""
        seconds = (self._end - time.monotonic()) * share
        if seconds < LEAST:
            self.note(stage, "skipped: no time left")
            return
        command = [sys.executable, str(HERE / f"{stage}.py"), "--folder", str(self.folder)]
        # the stage itself begins nothing new when four fifths are over
        command += ["--seconds", f"{0.8 * seconds:.1f}", *(["--dry"] if self.dry else [])]
        started = time.monotonic()
        process = self._start(command)
        late = threading.Timer(seconds, end, [process])
        late.start()
        with (self.folder / "log.txt").open("a") as log:
            for line in process.stdout or ():
                log.write(line)
                if line.startswith(f"{stage}: "):
                    print(line, end="", flush=True)
        code = process.wait()
        late.cancel()
        taken = f"{time.monotonic() - started:.0f} s"
        if code == -signal.SIGKILL:
            self.note(stage, f"ended after {taken}: its time was over")
        elif code:
            self.note(stage, f"failed after {taken}: exit code {code}, see log.txt")
        else:
            self.note(stage, f"took {taken}")

    def _start(self, command: list[str], log: Path | None = None) -> subprocess.Popen:
        out = subprocess.PIPE if log is None else log.open("a")
        process = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, stdout=out, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    def stop(self) -> None:
        """End whatever still runs."""
        for process in self._started:
            end(process)

    def conclude(self) -> int:
        """Print what failed and, last, the table, which is written too; the exit code."""
        figures, notes = read(self.folder / "results.jsonl")
        about = [note.removeprefix("machine: ") for note in notes if note.startswith("machine: ")]
        if self.dry:
            about = ["A dry run at toy sizes on the CPU: no figure means anything."]
        text = "\n".join([*about, "", table(figures)])
        (self.folder / "table.md").write_text(text + "\n")
        faults = [note for note in notes if any(word in note for word in FAULTS)]
        print("", *faults, "", text, sep="\n")
        return 1 if faults else 0


def installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def end(process: subprocess.Popen) -> None:
    """Kill a process that this one started, with what it started itself, which may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    arguments = parser(__doc__.splitlines()[0])
    arguments.set_defaults(folder=Path(os.environ.get("OUT") or FOLDER), seconds=SECONDS)
    arguments.add_argument("--only", default=",".join(STAGES), help="these stages")
    options = arguments.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        arguments.error(f"there is no stage {unknown[0]}; there are {', '.join(STAGES)}")
    if not options.dry and not torch.cuda.is_available():
        arguments.error("torch sees no CUDA device here (see mambabyte doctor); --dry needs none")
    check = Check(options.dry, options.seconds, options.folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if not check.dry:
            check.prepare()
        for number, name in enumerate(names):
            if STAGES[name].peers:
                check.wait_for_peers()
            rest = sum(STAGES[other].seconds for other in names[number:])
            check.run(name, STAGES[name].seconds / rest)
        check.wait_for_peers()
        return check.conclude()
    finally:
        check.stop()


if __name__ == "__main__":
    sys.exit(main())
