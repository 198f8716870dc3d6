"""Each shape of the kernels is tested on every processor that has its instructions, chosen there or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mambabyte.ops.cpu import build

OPS = Path(__file__).parents[1]
TESTS = [
    OPS / name / f"test_{name}.py" for name in ("selective_scan", "causal_conv1d", "residual_norm", "ssd")
]
TESTS += [
    OPS / "step" / f"test_{name}.py" for name in ("mamba_step", "kept_weights", "rounded_weights", "windows")
]


def narrower() -> list[str]:
    """All but the widest, which the other tests run."""
    return build.available_instruction_sets()[1:]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="instruction sets are named for x86-64 only")
@pytest.mark.parametrize("instruction_set", ["avx2", "sse2"])
def test_the_kernels_are_right_with(instruction_set):
    if instruction_set not in narrower():
        pytest.skip("it is what this processor runs anyway, or does not have")
    environment = {**os.environ, "MAMBABYTE_ISA": instruction_set}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_layout_of_the_states_follows_the_instruction_set():
    if "avx2" not in narrower():
        pytest.skip("no narrower shape to compare with")
    code = (
        "import torch; from mambabyte.ops.selective_scan.cpu import states_shape;"
        "print(states_shape(torch.empty(2, 65, 20), torch.empty(20, 3)))"
    )
    shapes = {}
    for name in build.available_instruction_sets():
        environment = {**os.environ, "MAMBABYTE_ISA": name}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        shapes[name] = done.stdout.strip()
    assert shapes["avx2"] == shapes["sse2"] == "(2, 4, 3, 3, 8)"
    assert shapes.get("avx512", "(2, 4, 2, 3, 16)") == "(2, 4, 2, 3, 16)"


def test_an_empty_name_is_none(monkeypatch):
    monkeypatch.setenv("MAMBABYTE_ISA", "")
    assert build._tuning() == build.TUNING


def test_an_instruction_set_that_is_not_there_is_said():
    name = "avx1024"
    code = "from mambabyte.ops.cpu import build; print(build.available())"
    environment = {**os.environ, "MAMBABYTE_ISA": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("(False") and f"MAMBABYTE_ISA={name} is not" in done.stdout, done.stderr
