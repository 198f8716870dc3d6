"""`mambabyte train` as a process that a scheduler stops."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mambabyte import checkpoints
from tests.conftest import FILES, TINY


def test_sigterm_saves_and_leaves_with_the_code_of_a_resumable_stop(corpus: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = [
        "experiment=tiny",
        "data=files",
        f"data.path={corpus}",
        f"data.folder={tmp_path}/prepared",
        "data.windows=packed",
        f"run_dir={run_dir}",
        "context_length=64",
        "trainer.max_steps=1000000",
        "trainer.accelerator=cpu",
        "callbacks.log_every=1",
    ]
    command = [sys.executable, "-m", "mambabyte", "train", *overrides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        metrics, deadline = run_dir / "metrics.csv", time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, err
    assert out == ""
    assert err.splitlines()[-1].startswith("mambabyte: stopped at step")
    assert "Traceback" not in err
    assert checkpoints.read(run_dir).step >= 2


def test_processes_killed_and_stopped_from_outside_end_with_the_bits_of_one_left_alone(
    corpus: Path, finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    places = [f"run_dir={run_dir}", f"data.folder={tmp_path}/prepared", f"data.path={corpus}"]
    command = [sys.executable, "-m", "mambabyte", "train", *TINY, *FILES, "name=finished", *places]

    def process(number: int, moment: Callable[[], bool]) -> tuple[int, str]:
        """The exit code and errors of a process that gets a signal when the moment has come, if ever."""
        with (tmp_path / "errors").open("w+") as errors:
            train = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # as where the other run was made
            )
            while train.poll() is None and not moment():
                time.sleep(0.002)
            train.send_signal(number)
            train.wait(timeout=120)
            errors.seek(0)
            return train.returncode, errors.read()

    code, said = process(signal.SIGUSR1, (tmp_path / "prepared").exists)
    assert (code, "Traceback" in said) == (75, False), said
    assert said.splitlines()[-1].startswith("mambabyte: stopped ")
    code, said = process(signal.SIGKILL, lambda: any(run_dir.glob("checkpoints/step_00000005*")))
    assert code in (-signal.SIGKILL, 0), said
    code, said = process(0, lambda: False)
    assert code == 0, said
    ours, theirs = (checkpoints.read(folder).state_dict for folder in (run_dir, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.global_batch_bytes=3000", "trainer.global_batch_bytes=3000 must be a multiple of"),
        ("trainer.micro_batch_size=3", "trainer.global_batch_bytes=8192 must be a multiple of 3072"),
        ("trainer.max_steps=abc", "trainer.max_steps must be an integer"),
        ("data.path=nowhere", "no file matches data.path"),
    ],
)
def test_what_can_be_known_without_torch_is_told_before_it_is_imported(
    override: str, sentence: str, tmp_path: Path
) -> None:
    program = (
        "import sys; from mambabyte.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "data=files", override],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "1 False\n" and sentence in done.stderr
    assert not list(tmp_path.iterdir())
