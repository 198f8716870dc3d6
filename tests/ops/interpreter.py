"""Where tests of Triton kernels run: on a CUDA device, else in Triton's interpreter, on CPU tensors.

Triton chooses its interpreter when it is imported, so that such tests need a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"

# marks the tests of kernels, and the ones that start the processes in which those run
here = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="run in the interpreter's own process")
outside = pytest.mark.skipif(CUDA or INTERPRETED, reason="the kernels' tests run in this process")


def run_in_the_interpreter(*files: Path) -> None:
    """Run the tests of these files in Triton's interpreter, in one process."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, files)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
