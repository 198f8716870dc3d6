"""Kernels in processes forked after the parent's OpenMP threads have started."""

import multiprocessing
import subprocess
import sys

import pytest

# In a process of its own, so that pytest itself is not forked.
PROGRAM = """
import os, signal, torch
from mambabyte.models import MambaByteConfig
torch.set_num_threads(2)
torch.manual_seed(0)
model = MambaByteConfig(d_model=64, n_layer=2).build()
bytes = torch.randint(0, 256, (2, 65))

def loss():
    model.zero_grad()
    out = torch.nn.functional.cross_entropy(model(bytes[:, :-1]).flatten(0, 1), bytes[:, 1:].flatten())
    out.backward()
    return out.item()

{body}
"""
KERNELS_IN_A_CHILD = """
from mambabyte.ops import causal_conv1d, residual_norm, selective_scan
u, A, B = torch.randn(2, 65, 128), -torch.rand(128, 4), torch.randn(2, 65, 4)

def kernels():
    with torch.no_grad():
        parts = [selective_scan(u, u, A, B, B, delta_softplus=True)]
        parts += [causal_conv1d(u, torch.ones(128, 4), None)]
        parts += residual_norm(u, u, torch.ones(128), None, 1e-5, True)
    return [part.numpy().tobytes() for part in parts]

loss()
expected = kernels()
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends a child that waits for threads it does not have
    os._exit(0 if kernels() == expected else 3)
status = os.waitpid(child, 0)[1]
assert status == 0, status
"""
BESIDE_WORKERS = """
from torch.utils.data import DataLoader

class Windows(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, index):
        with torch.no_grad():
            return model(bytes)[0, -1] * 0 + index

signal.alarm(120)
first = loss()
rows = [batch for batch in DataLoader(Windows(), batch_size=4, num_workers=2, multiprocessing_context="fork")]
assert torch.equal(torch.cat(rows)[:, 0], torch.arange(8.0))
assert loss() == first
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.parametrize("body", [KERNELS_IN_A_CHILD, BESIDE_WORKERS])
def test_kernels_run_in_forked_processes(body):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
