"""The selective scan, forward and backward: every backend of ours, and mamba_ssm's in its own layout.

D=2048, N=16, bf16, B = 8, 4, 1 and L = 2^9 to 2^17. The size that is compared comes first, so that it is
there if time runs out. mamba_ssm in our layout is our backend of that name, transpositions included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peers
import torch
from stage import Stage, main
from torch import Tensor

from mambabyte.ops import selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def run(stage: Stage) -> None:
    channels, states = stage.choose((2048, 16), (8, 3))
    lengths = [2**power for power in stage.choose(range(9, 18), (5, 6))]
    batches = stage.choose((8, 4, 1), (2, 1))
    compared = (batches[0], stage.choose(8192, 64))
    sizes = [compared] + [(b, n) for b in batches for n in lengths if (b, n) != compared]
    backends = stage.backends("selective_scan")
    for batch, length in sizes:
        name = f"B={batch} L={length}"
        if stage.seconds_left < 2:
            stage.note(f"{name} and what follows", "no time left")
            break
        with stage.case(name):
            tensors, grad = inputs(stage, batch, length, channels, states)
            for backend in backends:
                # its (B, L, D, N) tensors fill the card otherwise
                if backend != "reference" or batch * length <= 4096:
                    scan = partial(selective_scan, **tensors, delta_softplus=True, backend=backend)
                    measure(stage, f"{name} {backend}", scan, tensors, grad)
            with stage.case(f"{name} mamba_ssm, its layout"):
                tensors, grad = in_its_own_layout(tensors, grad)
                scan = partial(
                    peers.selective_scan(stage.dry), *(tensors[name] for name in NAMES), delta_softplus=True
                )
                measure(stage, f"{name} mamba_ssm, its layout", scan, tensors, grad)


def inputs(
    stage: Stage, batch: int, length: int, channels: int, states: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The scan's arguments, as leaf tensors, and a gradient of its output."""
    generator = torch.Generator(stage.device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=generator, device=stage.device).to(dtype)

    shape = (batch, length, channels)
    tensors = {
        "u": draw(*shape),
        "delta": draw(*shape),
        "A": -torch.arange(1.0, states + 1, device=stage.device).repeat(channels, 1),
        "B": draw(batch, length, states),
        "C": draw(batch, length, states),
        "D": torch.ones(channels, device=stage.device),
        "z": draw(*shape),
        "delta_bias": draw(channels, dtype=torch.float32) - 4,
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}, draw(*shape)


def in_its_own_layout(tensors: dict[str, Tensor], grad: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The same numbers with channels before time, as mamba_ssm's scan wants them."""
    turned = {
        name: tensor.detach().transpose(1, 2).contiguous() if tensor.dim() == 3 else tensor.detach()
        for name, tensor in tensors.items()
    }
    return {name: tensor.requires_grad_() for name, tensor in turned.items()}, grad.transpose(
        1, 2
    ).contiguous()


def measure(
    stage: Stage, case: str, scan: Callable[[], Tensor], tensors: dict[str, Tensor], grad: Tensor
) -> None:
    with stage.case(case):
        leaves = list(tensors.values())

        def both() -> None:
            torch.autograd.grad(scan(), leaves, grad)

        stage.record(
            case,
            forward=(stage.milliseconds(torch.no_grad()(scan)), "ms"),
            both=(stage.milliseconds(both), "ms"),
            peak=(stage.peak_gib(both), "GiB"),
        )


if __name__ == "__main__":
    main("scan", run)
