"""Run directories as training leaves them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mambabyte.models import LSTMConfig
from mambabyte.runs.metrics_csv import write_metrics

BATCH = 256


def figure(bits_per_byte: float, **changes: Any) -> dict[str, Any]:
    """A figure as summary.json has it."""
    return {
        "bits_per_byte": bits_per_byte,
        "bytes": 1404,
        "documents": 3,
        "protocol": {"name": "disjoint", "context_length": 32, "first_byte": "8 bits", "max_bytes": None},
        "data_fingerprint": "5d7bb8e3dd609bfd",
        "precision": "fp32",
        "device": "cpu",
        **changes,
    }


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """write_run("name", ...) writes a run of 10 steps, a row each second one, and returns its directory."""

    def write_run(
        name: str,
        bits_per_byte: float | None = 2.5,
        model: Any = None,
        steps: int = 10,
        seed: int = 0,
        validation_bytes: int = 200,
        learning_rate: float = 1e-3,
        validate_every: int = 4,
        **changes: Any,
    ) -> Path:
        run_dir = tmp_path / "runs" / name
        run_dir.mkdir(parents=True)
        config = {
            "name": name,
            "seed": seed,
            "context_length": 32,
            "model": (model or LSTMConfig(d_model=16, n_layer=1)).to_dict(),
            "data": {"path": "corpus", "workers": seed},
            "optimizer": {"learning_rate": learning_rate},
            "trainer": {"max_steps": 10, "global_batch_bytes": BATCH, "precision": "fp32"},
            "callbacks": {"validation_bytes": validation_bytes},
        }
        (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
        rows = [
            {
                "step": step,
                "bytes": step * BATCH,
                "seconds": step / 2,
                "bits_per_byte": 8 - step / 2,
                "validation_bits_per_byte": 8 - step / 2 if step % validate_every == 0 else None,
                "learning_rate": 1e-3,
                "gradient_norm": 1.0,
                "bytes_per_second": 500.0 if step > 2 else 1.0,
                "peak_memory_bytes": 1000 * step,
            }
            for step in range(2, steps + 1, 2)
        ]
        write_metrics(run_dir / "metrics.csv", rows)
        if bits_per_byte is not None:
            summary = {
                "step": steps,
                "validation": figure(bits_per_byte, **changes),
                "validation_stateful": figure(bits_per_byte - 0.25, **changes),
            }
            (run_dir / "summary.json").write_text(json.dumps(summary))
        return run_dir

    return write_run
