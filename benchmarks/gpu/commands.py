"""The program itself on the device: doctor, train, resume, eval, generate, compress and decompress; and
what the trainer reaches with the 353M model, on the standard library's sources instead of PG19.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stage import Stage, main

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "train", "experiment=tiny", "name=small", "data=stdlib", "data.validation_bytes=65536",
    "callbacks.validate_bytes=16384", "callbacks.evaluate_bytes=16384",
]  # fmt: skip
PAPER = [
    "train", "+experiment=pg19", "name=paper", "data=stdlib", "data.windows=contiguous",
    "data.streaming=false", "data.validation_bytes=65536", "trainer.max_steps=6",
    "trainer.global_batch_bytes=131072", "trainer.micro_batch_size=4", "optimizer.warmup_steps=1",
    "callbacks.log_every=1", "callbacks.validate_every=0", "callbacks.sample_every=0",
    "callbacks.checkpoint_every=0", "callbacks.evaluate_bytes=0",
]  # fmt: skip
TOY = [
    "model.d_model=16", "model.n_layer=2", "context_length=64", "trainer.global_batch_bytes=512",
    "trainer.micro_batch_size=2", "trainer.precision=fp32", "optimizer.warmup_steps=1",
]  # fmt: skip


def run(stage: Stage) -> None:
    device = f"device={stage.device.type}"
    where = [f"trainer.accelerator={stage.choose('gpu', 'cpu')}", *stage.choose([], TOY)]
    first, last = stage.choose((30, 40), (2, 3))
    model = "ckpt=runs/small"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = b"".join(path.read_bytes() for path in sorted((ROOT / "benchmarks").glob("*.py")))
        (folder / "text").write_bytes(text[: stage.choose(20000, 300)])
        commands = {
            "doctor": ["doctor", "--offline"],
            "train": [*SMALL, *where, f"trainer.max_steps={first}"],
            "resume": [*SMALL, *where, f"trainer.max_steps={last}"],
            "eval": ["eval", "--bpb", model, "max_bytes=16384", device],
            "generate": ["generate", model, "bytes=16", device],
            "compress": ["compress", "text", model, device],
            "decompress": ["decompress", "text.mbc", model, device, "out=back"],
            "353M": [*PAPER, *where],
        }
        for case, arguments in commands.items():
            mambabyte(stage, folder, case, arguments)
        with stage.case("the same bytes"):
            same = (folder / "back").read_bytes() == (folder / "text").read_bytes()
            stage.record("the same bytes", same=(float(same), ""))
        with stage.case("353M by the trainer"):
            *_, row = csv.DictReader((folder / "runs/paper/metrics.csv").open())
            stage.record(
                "353M by the trainer",
                rate=(float(row["bytes_per_second"]) / 1e3, "kB/s"),
                peak=(float(row["peak_memory_bytes"]) / 2**30, "GiB"),
            )


def mambabyte(stage: Stage, folder: Path, case: str, arguments: list[str]) -> None:
    """Run a command in the folder; record its seconds, or note what it said last."""
    with stage.case(case):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "mambabyte", *arguments],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=max(stage.seconds_left, 1),
        )  # fmt: skip
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", flush=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise RuntimeError(f"exit code {done.returncode}: {' '.join(said)}")
        stage.record(case, seconds=(time.monotonic() - started, "s"))


if __name__ == "__main__":
    main("commands", run)
