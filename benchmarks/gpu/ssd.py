"""SSD at 64 and 128 states, forward and backward, against our scan at 16 and mamba_ssm's
`mamba_chunk_scan_combined`.

B=8, L=8192, 32 heads of 64 channels (D=2048), one group, bf16. The product of x and the step sizes, which
mamba_ssm's function computes itself, is part of every call.
"""

from __future__ import annotations

from functools import partial

import peers
import scan
import torch
from stage import Stage, main
from torch import Tensor

from mambabyte.ops import selective_scan, ssd


def run(stage: Stage) -> None:
    batch, length, heads, channels = stage.choose((8, 8192, 32, 64), (2, 37, 3, 5))
    for states in stage.choose((64, 128), (4,)):
        tensors, grad = inputs(stage, batch, length, heads, channels, states)
        for backend in stage.backends("ssd"):
            call = partial(ours, **tensors, backend=backend)
            scan.measure(stage, f"N={states} {backend}", call, tensors, grad)
        with stage.case(f"N={states} mamba_ssm"):
            call = partial(peers.chunk_scan(stage.dry), **tensors, chunk_size=256)
            scan.measure(stage, f"N={states} mamba_ssm", call, tensors, grad)
    states = stage.choose(16, 3)
    tensors, grad = scan.inputs(stage, batch, length, heads * channels, states)
    call = partial(selective_scan, **tensors, delta_softplus=True)
    scan.measure(stage, "selective scan", call, tensors, grad)


def inputs(
    stage: Stage, batch: int, length: int, heads: int, channels: int, states: int
) -> tuple[dict[str, Tensor], Tensor]:
    """mamba_ssm's arguments, as leaf tensors, and a gradient of the output."""
    generator = torch.Generator(stage.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=stage.device).bfloat16()

    tensors = {
        "x": draw(batch, length, heads, channels),
        "dt": torch.rand(batch, length, heads, generator=generator, device=stage.device) / 10,
        "A": -torch.linspace(1, 16, heads, device=stage.device),
        "B": draw(batch, length, 1, states),
        "C": draw(batch, length, 1, states),
    }
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    return tensors, draw(batch, length, heads, channels)


def ours(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, backend: str) -> Tensor:
    scaled = x * dt.unsqueeze(-1).to(x.dtype)
    out = ssd(scaled, dt * A, B, C, backend=backend)
    assert isinstance(out, Tensor)
    return out


if __name__ == "__main__":
    main("ssd", run)
