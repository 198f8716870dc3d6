"""The sbatch script and the sweeps, with fakes of SLURM's programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mambabyte import checkpoints
from tests.training.distributed.test_processes import A_MINUTE, children, wait_until

SCRIPT = Path(__file__).parents[3] / "scripts" / "train.sbatch"
JOB = str(os.getpid())  # the script derives its port from the job, so each test process has its own

# Two nodes of one process each, both of them this machine.
FAKES = {
    "srun": """
shift
for node in 1 2; do "$@" & tasks+=($!); done
echo "${tasks[@]}" > "$SLURM_FOLDER/tasks"
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "${code:-0}"
""",
    "scancel": f'test "$*" = "--signal=USR1 {JOB}" && kill -USR1 $(cat "$SLURM_FOLDER/tasks")',
    "scontrol": """
if [ "$1" = show ]; then printf '127.0.0.1\\n127.0.0.1\\n'; else echo "$*" >> "$SLURM_FOLDER/calls"; fi
""",
}


@pytest.fixture
def sbatch(settings: list[str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """sbatch("key=value", ...) -> the script, as SLURM's first node runs it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "SLURM_FOLDER": str(tmp_path),
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }
    jobs: list[subprocess.Popen] = []

    def sbatch(*overrides: str) -> subprocess.Popen:
        with (tmp_path / "err").open("w") as err:
            job = subprocess.Popen(
                ["bash", SCRIPT, *settings, f"run_dir={tmp_path}/run", "callbacks.log_every=1", *overrides],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )
        jobs.append(job)
        return job

    yield sbatch
    for job in jobs:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def test_the_script_trains_on_two_nodes_and_requeues_itself_on_a_stop_signal(
    sbatch: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    metrics, err = tmp_path / "run" / "metrics.csv", tmp_path / "err"
    job = sbatch("trainer=ddp", "trainer.max_steps=1000000", "callbacks.validate_every=0")

    def stepped() -> bool:
        assert job.poll() is None, err.read_text()
        return metrics.exists() and metrics.read_text().count("\n") > 2

    wait_until(stepped, 240)
    assert "2 x cpu" in err.read_text()
    job.send_signal(signal.SIGUSR1)  # as --signal=B:USR1@300 does
    assert job.wait(A_MINUTE) != 0
    assert err.read_text().count("mambabyte: stopped at step") == 1
    assert (tmp_path / "calls").read_text() == f"requeue {JOB}\n"
    assert len(os.listdir(tmp_path / "run" / "checkpoints")) == 2  # saved once; and last.ckpt
    reached = checkpoints.read(tmp_path / "run").step
    again = sbatch("trainer=ddp", "trainer.max_steps=1000000", "seed=1")
    assert again.wait(240) != 0
    assert "seed (0 there, 1 now)" in err.read_text()
    assert checkpoints.read(tmp_path / "run").step == reached
    assert (tmp_path / "calls").read_text() == f"requeue {JOB}\n"  # a mistake is not tried again


def test_jobs_of_a_sweep_are_processes_and_resume_after_a_stop_signal(
    settings: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "sweep"
    jobs = ["-m", "seed=1,2", "launcher=submitit_local", f"run_dir={run_dir}", "trainer.max_steps=400"]
    quick = ["trainer.global_batch_bytes=64", "callbacks.validate_every=0", "callbacks.sample_every=0"]
    with (tmp_path / "err").open("w") as err:
        sweep = subprocess.Popen(
            [sys.executable, "-m", "mambabyte", "train", *settings, *jobs, *quick],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=err,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:

        def stepping() -> list[Path]:
            assert sweep.poll() is None, (tmp_path / "err").read_text()
            # once there is a row, the run and no longer submitit handles signals
            return [path for path in run_dir.glob("*/metrics.csv") if path.read_text().count("\n") > 1]

        wait_until(stepping, 240)
        seeds = [path.parent for path in stepping()]
        task = next(
            task
            for controller in children(sweep.pid)
            for task in children(controller)
            if holds(task, seeds[0])
        )
        os.kill(task, signal.SIGUSR1)
        assert sweep.wait(240) == 0, (tmp_path / "err").read_text()
    finally:
        if sweep.poll() is None:
            os.killpg(sweep.pid, signal.SIGKILL)
    for path in run_dir.glob("*/metrics.csv"):
        steps = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
        assert steps == [str(step) for step in range(2, 401, 2)]
    assert len(list(run_dir.glob("*/summary.json"))) == 2
    logs = "".join(log.read_text() for log in run_dir.glob(".submitit/*/*.err"))
    assert logs.count("resumes from step") == 1


def holds(process: int, run_dir: Path) -> bool:
    """Whether the process trains in ``run_dir``, by the lock that it holds."""
    opened = [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]
    return str(run_dir / ".lock") in opened
