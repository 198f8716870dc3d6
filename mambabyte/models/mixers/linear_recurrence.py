"""The elementwise recurrence s_t = decay_t s_{t-1} + added_t, in 2 sqrt(L) steps of PyTorch's operations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_recurrence(decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
    """All s_t (B, L, ..) for decay (B, L, ..), which may have dimensions of 1, added (B, L, ..) and s_0
    (B, ..), with gradients for each."""
    return _LinearRecurrence.apply(decay, added, initial)


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
        sums = _run(decay, added, initial)
        ctx.save_for_backward(decay, initial, sums)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, initial, sums = ctx.saved_tensors
        # the same recurrence from the end: r_t = decay_{t+1} r_{t+1} + grad_t
        following = torch.cat([decay.flip(1)[:, :1], decay.flip(1)[:, :-1]], dim=1)
        r = _run(following, grad.flip(1), torch.zeros_like(initial)).flip(1)
        earlier = torch.cat([initial.unsqueeze(1), sums[:, :-1]], dim=1)
        shared = [dim for dim in range(2, decay.dim()) if decay.shape[dim] == 1]
        grad_decay = (r * earlier).sum(shared, keepdim=True) if shared else r * earlier
        return grad_decay, r, decay[:, 0] * r[:, 0]


def _run(decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
    """Chunks side by side, one step after another, then from chunk to chunk."""
    length = added.shape[1]
    chunk = 2 ** math.ceil(math.log2(length) / 2)
    missing = -length % chunk
    if missing:
        decay, added = (torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], 1) for x in (decay, added))
    decay, added = decay.unflatten(1, (-1, chunk)), added.unflatten(1, (-1, chunk))
    sums, decays = torch.empty_like(added), torch.empty_like(decay)
    sums[:, :, 0], decays[:, :, 0] = added[:, :, 0], decay[:, :, 0]
    for t in range(1, chunk):
        torch.addcmul(added[:, :, t], decay[:, :, t], sums[:, :, t - 1], out=sums[:, :, t])
        torch.mul(decay[:, :, t], decays[:, :, t - 1], out=decays[:, :, t])
    carried = [initial]
    for index in range(added.shape[1] - 1):
        carried.append(torch.addcmul(sums[:, index, -1], decays[:, index, -1], carried[-1]))
    sums.addcmul_(decays, torch.stack(carried, dim=1).unsqueeze(2))
    return sums.flatten(1, 2)[:, :length]
