"""`mambabyte train` as a process that a scheduler stops."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from mambabyte import checkpoints


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
    assert checkpoints.read(run_dir)["global_step"] >= 2
