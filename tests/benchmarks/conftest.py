"""What the tests of the benchmarks share."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """load("scaling") imports a file of benchmarks as it imports the others there: by its bare name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def tiny(load, monkeypatch) -> str:
    """The name of a size whose runs take a few steps."""
    sizes = load("tournament_space").SIZES
    few = {"widths": (16, 32), "depths": (2,), "batch_bytes": (256,), "context_lengths": (64,)}
    costs = {"trial_flops": 1e8, "final_flops": 2e8, "final_seconds": 0.2, "validate_bytes": 256}
    monkeypatch.setitem(
        sizes, "tiny", replace(sizes["cpu"], head_width=16, evaluate_bytes=500, **few, **costs)
    )
    return "tiny"


@pytest.fixture
def planned(load):
    """planned(size, folder) is the plan of a small tournament."""

    def planned(size: str, folder: Path, *overrides: str, trials: int = 4, **given):
        options = {"trial_flops": None, "final_flops": None, "final_seconds": None, "books": folder / "books"}
        options |= {
            "corpora": ["books"],
            "models": ["mambabyte", "lstm"],
            "seeds": [1, 2],
            "runs": folder / "runs",
        }
        options |= {"size": size, "trials": trials, "overrides": list(overrides), **given}
        return load("tournament_runs").Plan.of(SimpleNamespace(**options))

    return planned
