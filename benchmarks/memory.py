"""Peak memory of one Mamba layer's forward and backward pass, in units of one (B, L, D, N) fp32 tensor.

    python benchmarks/memory.py [--batch 1 --length 8192 --d-model 512 --states 16 --precision fp32]

That tensor holds every state of the scan; a plain implementation writes it several times. The figure is the
peak resident size during the pass minus the size before it, so inputs and weights do not count. Each
implementation runs in a process of its own. Install mambapy with `pip install -e '.[bench]'`; if missing, it
is reported and skipped.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable

import torch
from measuring import machine, parser
from torch import Tensor

from mambabyte.models import MambaByteConfig
from mambabyte.ops import selective_scan
from mambabyte.runtime.memory import PeakMemory

IMPLEMENTATIONS = {
    "mambabyte": (),
    "mambabyte, the scan alone": (),
    "mambapy pscan": ("mambapy",),
}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=3)
    for name, default in (("batch", 1), ("length", 8192), ("d-model", 512), ("states", 16)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments.add_argument(
        "--implementation", choices=IMPLEMENTATIONS, help="measure this one, in this process"
    )
    options = arguments.parse_args()
    if options.implementation:
        print(peak(options))
        return
    whole = 4 * options.batch * options.length * 2 * options.d_model * options.states
    peaks: dict[str, list[int]] = {}
    for name, needs in IMPLEMENTATIONS.items():
        missing = [package for package in needs if not importlib.util.find_spec(package)]
        if missing:
            print(f"skipped: {name} ({', '.join(missing)} not installed)", file=sys.stderr)
            continue
        command = [sys.executable, *sys.argv, "--implementation", name]
        runs = [subprocess.run(command, capture_output=True, text=True) for _ in range(options.repeats)]
        if any(run.returncode for run in runs):
            print(f"skipped: {name} failed: {runs[0].stderr.splitlines()[-1:]}", file=sys.stderr)
            continue
        peaks[name] = [int(run.stdout) for run in runs]
    ratios = {name: sorted(values)[len(values) // 2] / whole for name, values in peaks.items()}
    if options.json:
        setting = {key: value for key, value in vars(options).items() if key != "implementation"}
        record = {
            "machine": machine(),
            **setting,
            "state_tensor_bytes": whole,
            "ratio": ratios,
            "bytes": peaks,
        }
        print(json.dumps(record))
        return
    print(f"{machine()}\none (B, L, D, N) fp32 tensor: {whole / 2**20:.0f} MiB; {options.precision}")
    for name, values in peaks.items():
        low, high = min(values) / 2**20, max(values) / 2**20
        print(f"  {name:28}{ratios[name]:8.2f} of it   ({low:.0f} to {high:.0f} MiB)")


def peak(options) -> int:
    """Bytes that one forward and backward pass adds to this process at its peak."""
    torch.manual_seed(0)
    prepare = implementation(options)

    def run(length: int) -> int:
        forward, out_shape = prepare(length)
        grad = torch.ones(out_shape)
        memory = PeakMemory(torch.device("cpu"))
        before = memory.bytes()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            out = forward()
        out.backward(grad.to(out.dtype))
        return memory.bytes() - before

    run(64)  # first builds the kernels, the permanent buffers and the weights' gradients
    return run(options.length)


def implementation(options) -> Callable[[int], tuple[Callable[[], Tensor], tuple[int, ...]]]:
    """A function of the length that makes inputs and returns the forward pass and its output's shape."""
    name, width, states = options.implementation, options.d_model, options.states
    if name == "mambabyte, the scan alone":
        return lambda length: scan(options, length)
    if name == "mambabyte":
        model = MambaByteConfig(d_model=width, n_layer=1, d_state=states, norm="rms").build()
        block = model.backbone.layers[0]

        def layer(x: Tensor) -> Tensor:
            return sum(block(x, None, None, None, False)[:2])

    else:
        from mambapy.mamba import MambaConfig, ResidualBlock

        layer = ResidualBlock(MambaConfig(d_model=width, n_layers=1, d_state=states, pscan=True))

    def prepare(length: int) -> tuple[Callable[[], Tensor], tuple[int, ...]]:
        x = torch.randn(options.batch, length, width, requires_grad=True)
        return lambda: layer(x), tuple(x.shape)

    return prepare


def scan(options, length: int) -> tuple[Callable[[], Tensor], tuple[int, ...]]:
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    channels = 2 * options.d_model
    u, delta, z = (torch.randn(options.batch, length, channels, dtype=dtype) for _ in range(3))
    B, C = (torch.randn(options.batch, length, options.states, dtype=dtype) for _ in range(2))
    A, D = -torch.rand(channels, options.states), torch.ones(channels)
    tensors = [tensor.requires_grad_() for tensor in (u, delta, A, B, C, D, z)]
    return lambda: selective_scan(*tensors, delta_softplus=True), tuple(u.shape)


if __name__ == "__main__":
    main()
