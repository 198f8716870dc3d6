"""The selective scan in plain PyTorch: the definition that every other backend must match.

For each batch element, channel d and state n (Mamba, arXiv 2312.00752, equations 2 and 4 and algorithm 2):

    dt[t]  = softplus(delta[t] + delta_bias)            step size; softplus only if delta_softplus
    a[t,n] = exp(dt[t] A[n])                            decay: zero-order hold; 0 at a document's first step
    h[t,n] = a[t,n] h[t-1,n] + dt[t] B[t,n] u[t]        state: Euler step for the input (section 3.6)
    y[t]   = sum_n C[t,n] h[t,n] + D u[t]               output, with the skip connection
    out[t] = y[t] silu(z[t])                            gate (section 3.4)

Each step is an affine map h -> a h + b. Affine maps compose associatively: (a2, b2) after (a1, b1) is
(a2 a1, a2 b1 + b2). Within a chunk, all prefixes are computed by doubling (Hillis and Steele, 1986) in
log2(chunk) vector steps; chunks run one after another. Only the states between chunks are kept, and the
backward pass recomputes each chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus
from torch.utils.checkpoint import checkpoint

CHUNK = 64


class ScanInputs(NamedTuple):
    """What `mambabyte.ops.selective_scan` scans, with the shapes given there, in the operators' order."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    initial_state: Tensor | None
    document_start: Tensor | None


def selective_scan_reference(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Scan in fp32 (fp64 if u is); return the output (B, L, D) in u's dtype and the final state (B, D, N)."""
    u, delta, A, B, C, D, z, bias, delta_softplus, state, document_start = inputs
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    state = u.new_zeros(u.shape[0], *A.shape, dtype=dtype) if state is None else state.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    out = []
    for first in range(0, u.shape[1], CHUNK):
        part = slice(first, first + CHUNK)
        start = None if document_start is None else document_start[:, part]
        u_part, delta_part, B_part, C_part = (x[:, part].to(dtype) for x in (u, delta, B, C))
        chunk = ScanInputs(
            u_part, delta_part, A.to(dtype), B_part, C_part, None, None, bias, delta_softplus, state, start
        )
        if torch.is_grad_enabled():
            y, state = checkpoint(_scan_chunk, chunk, use_reentrant=False, preserve_rng_state=False)
        else:
            y, state = _scan_chunk(chunk)
        out.append(y)
    y = torch.cat(out, dim=1)
    if D is not None:
        y = y + D.to(dtype) * u.to(dtype)
    if z is not None:
        y = y * silu(z.to(dtype))
    return y.to(u.dtype), state


def _scan_chunk(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """y without skip and gate, and the state after the last step."""
    u, delta, A, B, C, _, _, delta_bias, delta_softplus, state, document_start = inputs
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
    assert state is not None
    states = update + decay * state.unsqueeze(1)
    return torch.einsum("bldn,bln->bld", states, C), states[:, -1]
