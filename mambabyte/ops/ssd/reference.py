"""The state space dual form in plain PyTorch, by chunks (Mamba-2, arXiv 2405.21060, section 6).

Within a chunk the recurrence is a masked product like attention's, y = (C B^T * decay) x, with decay[t, s]
the product of the decays after s up to t. What a chunk adds to the state is a product too, and the states
between chunks follow one another, one step for each chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class SSDInputs(NamedTuple):
    """What `mambabyte.ops.ssd` takes, with the shapes given there, in the operators' order."""

    x: Tensor
    log_decay: Tensor | None
    B: Tensor
    C: Tensor
    initial_state: Tensor | None
    document_start: Tensor | None


def ssd_reference(inputs: SSDInputs, chunk: int) -> tuple[Tensor, Tensor]:
    """As `mambabyte.ops.ssd`, in fp32 (fp64 if x is); the output (B, L, H, P) in x's dtype and the state."""
    x, log_decay, B, C, state, document_start = inputs
    given, length, groups = x.dtype, x.shape[1], B.shape[2]
    dtype = torch.float64 if given == torch.float64 else torch.float32
    x, B, C = (_chunks(tensor.to(dtype), chunk).transpose(2, 3) for tensor in (x, B, C))  # (B, n, H, c, P)
    logs = None if log_decay is None else _chunks(log_decay.to(dtype), chunk).movedim(-1, 2).cumsum(-1)
    same, entering, leaving, surviving = _documents(document_start, chunk, x.shape[1])

    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    mask = causal if same is None else causal & same
    weights = (C @ B.mT).unsqueeze(3)
    if logs is None:
        weights = weights.masked_fill(~mask.unsqueeze(-3), 0.0)
    else:
        between = (logs.unsqueeze(-1) - logs.unsqueeze(-2)).masked_fill(~mask, -torch.inf)
        weights = weights * _by_group(between.exp(), groups)
    y = (weights @ _by_group(x, groups)).flatten(2, 3)

    # what each chunk adds to the state, (B, n, H, P, N)
    kept = x if logs is None else x * (logs[..., -1:] - logs).exp().unsqueeze(-1)
    kept = kept if leaving is None else kept * leaving.unsqueeze(-1)
    added = _by_group(kept, groups).mT.flatten(3, 4) @ B
    added = added.unflatten(3, (-1, x.shape[-1])).flatten(2, 3)

    carried = x.new_zeros(added[:, 0].shape) if state is None else state.to(dtype)
    whole = None if logs is None else logs[..., -1].exp()  # the decay of each chunk, (B, n, H)
    if surviving is not None:
        whole = surviving.to(dtype).expand(added.shape[:3]) if whole is None else whole * surviving
    before = []
    decays = [None] * added.shape[1] if whole is None else whole[..., None, None].unbind(1)
    for decay, addition in zip(decays, added.unbind(1), strict=True):
        before.append(carried)
        carried = carried + addition if decay is None else torch.addcmul(addition, carried, decay)

    if state is not None or len(before) > 1:
        entered = torch.stack(before, dim=1)  # (B, n, H, P, N)
        from_state = C @ _by_group(entered, groups).flatten(3, 4).mT  # (B, n, G, c, heads of the group x P)
        from_state = from_state.unflatten(-1, (-1, x.shape[-1])).transpose(3, 4).flatten(2, 3)
        if logs is not None:
            from_state = from_state * logs.exp().unsqueeze(-1)
        y = y + (from_state if entering is None else from_state * entering.unsqueeze(-1))
    return y.transpose(2, 3).flatten(1, 2)[:, :length].to(given), carried


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, L, ..) -> (B, n, c, ..), with zeros after the end: inputs of zero, and no decay."""
    missing = -x.shape[1] % chunk
    x = pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) if missing else x
    return x.unflatten(1, (-1, chunk))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(B, n, H, ..) -> (B, n, G, H / G, ..)."""
    return x.unflatten(2, (groups, -1))


def _documents(
    document_start: Tensor | None, chunk: int, chunks: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Which steps see which: within a chunk (B, n, 1, c, c); the state before it, and the state after it each
    step (B, n, 1, c); the state after it the state before it (B, n, 1)."""
    if document_start is None:
        return None, None, None, None
    number = document_start.cumsum(1)
    missing = chunks * chunk - number.shape[1]
    number = torch.cat([number, number[:, -1:].expand(-1, missing)], dim=1) if missing else number
    number = number.unflatten(1, (chunks, chunk))
    last = number[..., -1:]
    earlier = pad(last, (0, 0, 1, 0))[:, :-1]
    same = number.unsqueeze(-1) == number.unsqueeze(-2)
    return same.unsqueeze(2), (number == earlier).unsqueeze(2), (number == last).unsqueeze(2), last == earlier
