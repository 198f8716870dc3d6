"""Loading maps the weights: a model takes no more memory than they do, however they are stored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mambabyte import checkpoints
from mambabyte.checkpoints.building import shapes
from mambabyte.models import MambaByteConfig
from tests.checkpoints.formats.models import write_folder

SIZES = {"small": {"d_model": 16, "n_layer": 1}, "large": {"d_model": 768, "n_layer": 6}}
LAYOUTS = ("pytorch_model.bin", "model.safetensors.index.json", "run")
ALLOWED = 1.15  # of the weights' bytes, at the peak
# Peak resident memory above that before, every weight touched: resident memory counts mapped pages as soon as
# they are read, so a second copy anywhere, mapped or not, would show as twice the weights.
MEASURE = """
import re, sys
import mambabyte

def kib(name):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB", open("/proc/self/status").read(), re.MULTILINE)[1])

def load(folder):
    model = mambabyte.load(folder)
    assert all(weight.sum() for weight in model.parameters())
    return sum(weight.nbytes for weight in model.parameters())

for layout in sys.argv[1:]:
    load(f"{layout}/small")  # what is imported and built at first use
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = kib("VmRSS")
    size = load(f"{layout}/large")
    print(1024 * (kib("VmHWM") - before), size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_loading_peaks_at_the_weights(tmp_path: Path) -> None:
    for name, size in SIZES.items():
        config = MambaByteConfig(**size)
        weights = {name: torch.rand(shape) for name, shape in shapes(config).items()}
        for layout in LAYOUTS[:-1]:
            write_folder(tmp_path / layout / name, weights, size, layout)
        ours = {"format": checkpoints.FORMAT, "model": config.to_dict(), "config": None}
        named = {f"model.{key}": weight for key, weight in weights.items()}
        content = {"state_dict": named, "global_step": 1, "mambabyte": ours}
        checkpoints.write(content, tmp_path / "run" / name / "step_00000001.ckpt")
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / layout) for layout in LAYOUTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for layout, line in zip(LAYOUTS, done.stdout.splitlines(), strict=True):
        peak, size = map(int, line.split())
        assert size > 90e6
        assert 0.9 * size < peak <= ALLOWED * size, f"{layout}: {peak / size:.3f}"
