"""5. The block: H3 and the gated MLP become Mamba

A scan mixes along the sequence, channel by channel. A model also needs to mix channels, and to multiply
signals by each other. This part follows how the block around the scan came about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, silu

from mambabyte.lineage.selection import select, selective_recurrence

# ## H3: two products around two systems
#
# H3 (arXiv 2212.14052) asks what a state space model lacks for language, and answers by attention's parts:
# queries, keys and values. A **shift** system, which remembers the last inputs, lets a key be compared with
# the byte before it, and a diagonal system carries what was found along the sequence:
#
#     y = q ⊙ SSM_diagonal( SSM_shift(k) ⊙ v )
#
# A shift system of W states is a convolution of width W.


def causal_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, L, D), each channel convolved with its weight (D, W), whose last column meets the present."""
    length, width = x.shape[1], weight.shape[1]
    padded = pad(x, (0, 0, width - 1, 0))
    return sum(padded[:, w : w + length] * weight[:, w] for w in range(width))  # type: ignore[return-value]


def h3(q: Tensor, k: Tensor, v: Tensor, shift: Tensor, diagonal: Callable[[Tensor], Tensor]) -> Tensor:
    """y (B, L, D) of q, k and v (B, L, D); `shift` (D, W); `diagonal` maps (B, L, D) to (B, L, D)."""
    return q * diagonal(causal_convolution(k, shift) * v)


# If the shift does nothing and the diagonal system forgets nothing, Ā = 1, it is a running sum. H3 is then
# linear attention with heads of one channel, y_t = q_t Σ_{s≤t} k_s v_s:
#
# >>> q, k, v = torch.randn(3, 2, 9, 4, generator=torch.Generator().manual_seed(0)).double()
# >>> y = h3(q, k, v, torch.ones(4, 1).double(), lambda x: x.cumsum(1))
# >>> past = torch.ones(9, 9).double().tril()
# >>> torch.allclose(y, torch.einsum("btd,ts,bsd,bsd->btd", q, past, k, v))
# True
#
# ## The gated MLP
#
# Models of the time alternate two kinds of blocks: one mixes along the sequence (attention, H3), the other
# mixes channels. The second is often a gated MLP: two projections, one of which passes through a
# non-linearity and gates the other.


def gated_mlp(x: Tensor, W_in: Tensor, W_out: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, L, d) to (B, L, d); W_in (2 D, d), W_out (d, D); `branch` maps (B, L, D) to (B, L, D)."""
    a, z = linear(x, W_in).chunk(2, dim=-1)
    return linear(branch(a) * silu(z), W_out)


# ## Mamba: one block in place of two
#
# Mamba puts the scan into the gated MLP's main branch. H3's second product, by q, is the gate z; the first
# one becomes a plain activation; the shift stays, as a convolution of width 4. All blocks are alike, and most
# parameters are in the two projections.


def mamba(x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """(B, L, d) to (B, L, d) with the parameters of a `mambabyte.models.mamba.Mixer`."""
    p = parameters
    states, rank = p["A_log"].shape[1], p["dt_proj.weight"].shape[1]
    W_down, W_B, W_C = p["x_proj.weight"].split([rank, states, states])

    def branch(a: Tensor) -> Tensor:
        a = silu(causal_convolution(a, p["conv1d.weight"].squeeze(1)) + p["conv1d.bias"])
        delta, B, C = select(a, W_B, W_C, W_down, p["dt_proj.weight"], p["dt_proj.bias"])
        return selective_recurrence(a, delta, -torch.exp(p["A_log"]), B, C) + p["D"] * a

    return gated_mlp(x, p["in_proj.weight"], p["out_proj.weight"], branch)


# ## Why a convolution stands before the scan
#
# B_t, C_t and Δ_t are computed from one position. Without the convolution they see a single byte, and the
# first block must treat the h of "the" and the h of "she" alike. With it, they see four. `model.d_conv=1`
# takes it away:
#
# ```
# mambabyte train -m experiment=tiny name=convolution model.d_conv=1,4 seed=0,1,2 \
#     trainer.max_steps=600 trainer.precision=fp32
# ```
#
# Two layers of width 64 then end at 2.65, 2.64 and 2.65 bits per byte, and with the convolution at 2.26, 2.28
# and 2.27.
#
# ## The identity
#
# The few lines above are the block that this package trains, and MambaByte is a stack of them: each adds its
# output, of the normalised sum so far, to the sum. A starts as S4D-Real.
#
# >>> from mambabyte.lineage.s4 import s4d_real
# >>> from mambabyte.models.mamba import MambaByteConfig, Mixer
# >>> mixer = Mixer(MambaByteConfig(d_model=32)).double()
# >>> torch.allclose(-mixer.A_log.exp(), s4d_real(16).expand(64, 16))
# True
# >>> with torch.no_grad():
# ...     expected, _ = mixer(q.reshape(2, 9, 4).repeat(1, 1, 8), None, None, False)
# ...     found = mamba(q.repeat(1, 1, 8), mixer.state_dict())
# >>> torch.allclose(found, expected, atol=1e-10)
# True
