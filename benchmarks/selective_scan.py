"""The selective scan, forward and backward, compared with mambapy's `pscan` and, on a GPU, mamba_ssm's.

    python benchmarks/selective_scan.py [--batch 1 --length 2048 --channels 512 --states 16 --dtype float32]

All implementations do the same work on the same tensors: softplus of the step size, scan, skip and gate.
Install mambapy with `pip install -e '.[bench]'`; missing peers are reported and skipped. On a CPU ours also
runs at four times the length and twice the channels, where its time per byte and channel should not grow.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import torch
from measuring import measure, parser, report
from torch import Tensor
from torch.nn.functional import silu, softplus

from mambabyte.ops import backend_for, selective_scan

LONGER, WIDER = 4, 2


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=7)
    for name, default in (("batch", 1), ("length", 2048), ("channels", 512), ("states", 16)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = arguments.parse_args()
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)

    tensors, grad = inputs(options.batch, options.length, options.channels, options.states, dtype, device)
    scans = {
        f"mambabyte ({backend_for(device, dtype)})": lambda: selective_scan(**tensors, delta_softplus=True)
    }
    scans.update(peers(tensors, options.device))
    expected = next(iter(scans.values()))()
    calls: dict[str, Callable[[], object]] = {}
    for name, scan in scans.items():
        difference = (scan() - expected).abs().max() / expected.abs().max()
        assert difference < (1e-4 if dtype == torch.float32 else 2e-2), (
            f"{name} computes a different result: {difference}"
        )
        calls[f"{name} forward"] = torch.no_grad()(scan)
        calls[f"{name} forward+backward"] = lambda scan=scan: torch.autograd.grad(
            scan(), list(tensors.values()), grad
        )

    ours = next(iter(scans))
    longer = f"{ours} longer"
    if options.device == "cpu":
        large, large_grad = inputs(
            options.batch, LONGER * options.length, WIDER * options.channels, options.states, dtype, device
        )
        calls[f"{longer} forward+backward"] = lambda: torch.autograd.grad(
            selective_scan(**large, delta_softplus=True), list(large.values()), large_grad
        )

    timings = measure(calls, options.repeats)
    ratios = {
        f"{name} / ours, {part}": timings[f"{name} {part}"].median / timings[f"{ours} {part}"].median
        for name in scans
        if name != ours
        for part in ("forward", "forward+backward")
    }
    if options.device == "cpu":
        ratios["longer / ours, per byte, channel"] = timings[f"{longer} forward+backward"].median / (
            LONGER * WIDER * timings[f"{ours} forward+backward"].median
        )
    setting = {
        key: getattr(options, key) for key in ("batch", "length", "channels", "states", "dtype", "repeats")
    }
    report("selective scan", timings, ratios, options.json, **setting)


def inputs(
    batch: int, length: int, channels: int, states: int, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """The scan's arguments, as leaf tensors, and a gradient of its output."""
    torch.manual_seed(0)
    shape = (batch, length, channels)
    tensors = {
        "u": torch.randn(shape, dtype=dtype, device=device),
        "delta": torch.randn(shape, dtype=dtype, device=device),
        "A": -torch.rand(channels, states, device=device) * states,
        "B": torch.randn(batch, length, states, dtype=dtype, device=device),
        "C": torch.randn(batch, length, states, dtype=dtype, device=device),
        "D": torch.ones(channels, device=device),
        "z": torch.randn(shape, dtype=dtype, device=device),
        "delta_bias": torch.full((channels,), -4.0, device=device),
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}, torch.randn(
        shape, dtype=dtype, device=device
    )


def peers(tensors: dict[str, Tensor], device: str) -> dict[str, Callable[[], Tensor]]:
    """The other installed implementations that support this device."""
    found: dict[str, Callable[[], Tensor]] = {}
    if importlib.util.find_spec("mambapy"):
        from mambapy.mamba import MambaBlock, MambaConfig

        block = MambaBlock(MambaConfig(d_model=32, n_layers=1, pscan=True))

        def pscan() -> Tensor:
            u, delta, A, B, C, D, z, bias = tensors.values()
            return block.selective_scan(u, softplus(delta + bias), A, B, C, D).to(u.dtype) * silu(z)

        found["mambapy pscan"] = pscan
    else:
        print("skipped: mambapy is not installed", file=sys.stderr)
    if device == "cuda" and importlib.util.find_spec("selective_scan_cuda"):
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        def mamba_ssm() -> Tensor:
            u, delta, A, B, C, D, z, bias = tensors.values()
            u, delta, B, C, z = (t.transpose(1, 2) for t in (u, delta, B, C, z))
            return selective_scan_fn(u, delta, A, B, C, D, z, bias, delta_softplus=True).transpose(1, 2)

        found["mamba_ssm"] = mamba_ssm
    elif device == "cuda":
        print("skipped: mamba_ssm's CUDA extension is not installed", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
