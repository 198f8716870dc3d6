"""The tests that are marked gpu, six at a time; a small scan under compute-sanitizer, if that is there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from stage import Stage, main

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = Path(__file__).with_name("smallest_scan.py")
TOOLS = ("memcheck", "racecheck")
MARK = "pytest.mark.gpu"
# a line of pytest -v, of a process of xdist or its own; or of an error in collecting, in its summary
OUTCOME = re.compile(r"(?:\[gw\d+\] .*?|\S+::.*? |(?=ERROR ))(PASSED|FAILED|ERROR|SKIPPED)\b")


def run(stage: Stage) -> None:
    with stage.case("tests marked gpu"):
        run_tests(stage)

    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        stage.note("compute-sanitizer", "absent: it is not on the PATH")
        if not stage.dry:
            return
    runs = {}
    with ThreadPoolExecutor() as pool:  # most of a run is starting
        for backend in stage.backends("selective_scan"):
            for tool in TOOLS if backend in stage.choose(("cuda", "triton"), ("reference",)) else ():
                checked = [] if stage.dry else [sanitizer, "--tool", tool, "--error-exitcode", "9"]
                command = [*checked, sys.executable, str(SMALLEST), backend, stage.device.type]
                seconds = min(50, stage.seconds_left)
                runs[f"{tool} {backend}"] = pool.submit(output, command, seconds, check=True)
    for case, run in runs.items():
        with stage.case(case):
            run.result()
            stage.record(case, clean=(1.0, ""))


def run_tests(stage: Stage) -> None:
    """Count what passed, failed and was skipped, and name what failed, also if time runs out meanwhile."""
    # collecting all of tests/ would take longer than running these
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text()]
    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *options, *stage.choose(["-n", "6"], []), *files]
    late = None
    try:
        said = output(command, 0.75 * stage.seconds_left)
    except OutOfTime as fault:
        late, said = fault, fault.said
    outcomes = [(found[1], line) for line in said.splitlines() if (found := OUTCOME.match(line))]
    counts = Counter(word.lower() for word, _ in outcomes)
    if not counts:
        raise RuntimeError(f"no test in what pytest said: {said[-200:]}")
    stage.record("tests marked gpu", **{word: (count, "tests") for word, count in counts.items()})
    for word, line in outcomes:
        if word in ("FAILED", "ERROR"):
            stage.note("tests marked gpu", f"failed: {line.strip()}")
    if late is not None:
        raise late


class OutOfTime(Exception):
    def __init__(self, seconds: float, said: str) -> None:
        super().__init__(f"not done after {seconds:.0f} s")
        self.said = said


def output(command: list[str], seconds: float, check: bool = False) -> str:
    """What the command prints.

    Raises:
        OutOfTime: with what it has printed so far.
        RuntimeError: with `check`, it failed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    if check:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # so that reads beyond a tensor are seen
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        late = False
        try:
            process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            late = True
            process.send_signal(signal.SIGINT)  # on which pytest ends its own processes, too
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
        file.seek(0)
        said = file.read()
    print(said[-20000:], flush=True)
    if late:
        raise OutOfTime(seconds, said)
    if check and process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {said[-300:]}")
    return said


if __name__ == "__main__":
    main("marked_tests", run)
