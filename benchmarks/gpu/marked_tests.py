"""The tests that are marked gpu, six at a time; a small scan under compute-sanitizer, if that is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stage import Stage, main

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = Path(__file__).with_name("smallest_scan.py")
TOOLS = ("memcheck", "racecheck")
MARK = "pytest.mark.gpu"


def run(stage: Stage) -> None:
    # collecting all of tests/ would take longer than running these
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text()]
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *options, *stage.choose(["-n", "6"], []), *files]
    with stage.case("tests marked gpu"):
        said = output(command, 0.7 * stage.seconds_left)
        counts = {
            word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", said)
        }
        if not counts:
            raise RuntimeError(f"no count in what pytest said: {said[-200:]}")
        stage.record("tests marked gpu", **{word: (count, "tests") for word, count in counts.items()})
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        if failed:
            stage.note("tests marked gpu", f"failed: {' '.join(failed)}")

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


def output(command: list[str], seconds: float, check: bool = False) -> str:
    """What the command prints.

    Raises:
        RuntimeError: it ran out of time, or, with `check`, failed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    if check:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # so that reads beyond a tensor are seen
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(seconds, 1)
        )
    except subprocess.TimeoutExpired as fault:
        raise RuntimeError(f"not done after {seconds:.0f} s") from fault
    print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", flush=True)
    if check and done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
    return done.stdout


if __name__ == "__main__":
    main("marked_tests", run)
