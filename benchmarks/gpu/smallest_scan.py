"""One small scan with everything, forward and backward, for compute-sanitizer, and SSD where the backend has
it: smallest_scan.py BACKEND DEVICE.
"""

from __future__ import annotations

import sys

import torch

from mambabyte.ops import selective_scan, ssd
from mambabyte.ops.backends import BACKENDS

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
    if backend not in BACKENDS["ssd"]:
        return
    for dtype in (torch.float32, torch.bfloat16):
        x, B, C = (draw(BATCH, LENGTH, *rest).to(dtype) for rest in ((2, 35), (1, STATES), (1, STATES)))
        log_decay, state = draw(BATCH, LENGTH, 2), draw(BATCH, 2, 35, STATES)
        out, final = ssd(
            x, -log_decay.exp(), B, C, state, return_final_state=True, document_start=start.to(device),
            backend=backend,
        )  # fmt: skip
        (out.float().sum() + final.sum()).backward()
        assert log_decay.grad.isfinite().all() and state.grad.isfinite().all()


if __name__ == "__main__":
    main(*sys.argv[1:])
