"""The selective scan in plain PyTorch: the definition that every other backend is held to.

    dt[t] = softplus(delta[t] + delta_bias) h[t]  = exp(dt[t] A) h[t-1] + dt[t] u[t] B[t]        (zero-order
    hold for A, Euler for B: arXiv 2312.00752, eq. 2, 4) y[t]  = <C[t], h[t]> + D u[t],   out[t] = y[t]
    silu(z[t])

Each step is the affine map h -> a h + b, and affine maps compose associatively: (a2, b2) after (a1, b1) is
(a2 a1, a2 b1 + b2). Within a chunk all prefixes are found by doubling (Hillis and Steele) in log2(chunk)
vector steps; chunks follow one another. Only the state between chunks is kept: backward recomputes the inside
of each chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus
from torch.utils.checkpoint import checkpoint

CHUNK = 64


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    document_start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `mambabyte.ops.selective_scan`, in fp32 (fp64 if u is); returns the output and the final state."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    state = (
        u.new_zeros(u.shape[0], *A.shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    )
    bias = None if delta_bias is None else delta_bias.to(dtype)
    out = []
    for first in range(0, u.shape[1], CHUNK):
        part = slice(first, first + CHUNK)
        start = None if document_start is None else document_start[:, part]
        arguments = (
            u[:, part].to(dtype),
            delta[:, part].to(dtype),
            A.to(dtype),
            B[:, part].to(dtype),
            C[:, part].to(dtype),
        )
        if torch.is_grad_enabled():
            y, state = checkpoint(
                _chunk,
                *arguments,
                bias,
                delta_softplus,
                state,
                start,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        else:
            y, state = _chunk(*arguments, bias, delta_softplus, state, start)
        out.append(y)
    y = torch.cat(out, dim=1)
    if D is not None:
        y = y + D.to(dtype) * u.to(dtype)
    if z is not None:
        y = y * silu(z.to(dtype))
    return y.to(u.dtype), state


def _chunk(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor,
    document_start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dt = delta if delta_bias is None else delta + delta_bias
    dt = softplus(dt) if delta_softplus else dt
    decay = torch.exp(dt.unsqueeze(-1) * A)  # (B, L, D, N)
    if document_start is not None:
        decay = decay.masked_fill(document_start[:, :, None, None], 0.0)
    update = (dt * u).unsqueeze(-1) * B.unsqueeze(2)
    shift = 1
    while shift < decay.shape[1]:
        update = torch.cat(
            [update[:, :shift], update[:, shift:] + decay[:, shift:] * update[:, :-shift]], dim=1
        )
        decay = torch.cat([decay[:, :shift], decay[:, shift:] * decay[:, :-shift]], dim=1)
        shift *= 2
    states = update + decay * state.unsqueeze(1)
    return torch.einsum("bldn,bln->bld", states, C), states[:, -1]
