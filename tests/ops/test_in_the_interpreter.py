"""Runs the Triton kernels' tests in the interpreter, in one process; the scan's and SSD's start their own."""

from pathlib import Path

import pytest

from tests.ops.interpreter import outside, run_in_the_interpreter

pytest.importorskip("triton")
OPS = ("causal_conv1d", "residual_norm")


@outside
def test_the_kernels_of_these_ops():
    run_in_the_interpreter(*(Path(__file__).parent / op / "test_triton.py" for op in OPS))
