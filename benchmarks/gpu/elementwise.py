"""Convolution with SiLU, and the residual's addition with the norm, against causal_conv1d's and
mamba_ssm's.

At the 353M model's size, B=4, L=8192: the convolution on 2048 channels of bf16, in our layout and the same
for the peer (it reads channels last), the norm on a fp32 residual stream of width 1024 and a bf16 update.
"""

from __future__ import annotations

from collections.abc import Callable

import peers
import torch
from stage import Stage, main
from torch import Tensor

from mambabyte.ops import causal_conv1d, residual_norm


def run(stage: Stage) -> None:
    batch, length, width = stage.choose((4, 8192, 1024), (2, 9, 8))
    generator = torch.Generator(stage.device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=generator, device=stage.device).to(dtype).requires_grad_()

    channels = 2 * width
    x, grad = draw(batch, length, channels), draw(batch, length, channels).detach()
    weight, bias = draw(channels, 4, dtype=torch.float32), draw(channels, dtype=torch.float32)
    for backend in stage.backends("causal_conv1d"):

        def convolve(backend: str = backend) -> Tensor:
            return causal_conv1d(x, weight, bias, backend=backend)

        measure(stage, f"causal_conv1d {backend}", convolve, [x, weight, bias], [grad])
    with stage.case("causal_conv1d peer"):
        peer = peers.causal_conv1d(stage.dry)

        def theirs() -> Tensor:
            return peer(x.transpose(1, 2), weight, bias, activation="silu").transpose(1, 2)

        measure(stage, "causal_conv1d peer", theirs, [x, weight, bias], [grad])

    residual, update = draw(batch, length, width, dtype=torch.float32), draw(batch, length, width)
    weight, bias = draw(width, dtype=torch.float32), draw(width, dtype=torch.float32)
    grads = [grad[..., :width].contiguous(), torch.randn_like(residual)]
    for backend in stage.backends("residual_norm"):

        def norm(backend: str = backend) -> tuple[Tensor, Tensor]:
            with torch.autocast(stage.device.type, torch.bfloat16):
                return residual_norm(residual, update, weight, bias, 1e-5, rms=False, backend=backend)

        measure(stage, f"residual_norm {backend}", norm, [residual, update, weight, bias], grads)
    with stage.case("residual_norm peer"):
        fused = peers.residual_norm(stage.dry)

        def their_norm() -> tuple[Tensor, Tensor]:
            return fused(
                update, weight, bias, residual=residual, eps=1e-5, prenorm=True, residual_in_fp32=True
            )

        measure(stage, "residual_norm peer", their_norm, [residual, update, weight, bias], grads)


def measure(
    stage: Stage,
    case: str,
    call: Callable[[], Tensor | tuple[Tensor, ...]],
    leaves: list[Tensor],
    grads: list[Tensor],
) -> None:
    with stage.case(case):

        def both() -> None:
            outputs = call()
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            torch.autograd.grad(outputs, leaves, grads)

        stage.record(
            case,
            forward=(stage.milliseconds(torch.no_grad()(call)), "ms"),
            both=(stage.milliseconds(both), "ms"),
            peak=(stage.peak_gib(both), "GiB"),
        )


if __name__ == "__main__":
    main("elementwise", run)
