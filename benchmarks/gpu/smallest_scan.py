"""One small scan with everything, forward and backward, for compute-sanitizer: smallest_scan.py BACKEND
DEVICE.
"""

from __future__ import annotations

import sys

import torch

from mambabyte.ops import selective_scan

BATCH, LENGTH, CHANNELS, STATES = 2, 37, 70, 16


def main(backend: str, device: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    wide, narrow = (BATCH, LENGTH, CHANNELS), (BATCH, LENGTH, STATES)
    inputs = [
        draw(*wide), draw(*wide), draw(CHANNELS, STATES), draw(*narrow), draw(*narrow), draw(CHANNELS),
        draw(*wide), draw(CHANNELS),
    ]  # fmt: skip
    inputs[2] = (-inputs[2].detach().exp()).requires_grad_()
    state = draw(BATCH, CHANNELS, STATES)
    start = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    start[0, 9] = True
    out, final = selective_scan(
        *inputs, delta_softplus=True, initial_state=state, return_final_state=True,
        document_start=start.to(device), backend=backend,
    )  # fmt: skip
    (out.sum() + final.sum()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in (*inputs, state))


if __name__ == "__main__":
    main(*sys.argv[1:])
