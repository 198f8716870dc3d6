"""4. Selection: S6

Everything so far treats all inputs alike: what a byte does to the state depends on its value times a
constant. Such a model cannot decide that this byte matters and that one does not. Mamba (arXiv 2312.00752)
lets B, C and the step size depend on the input, and calls the result S6. Letters from here on: B batch (where
it is a size), L length, D channels, N states of each channel, R rank.

| | S4 | S6 | |
|---|---|---|---|
| A | (D, N) | (D, N) | stays a parameter; Δ makes its effect depend on the input |
| B, C | (D, N) | (B, L, N) | x W, shared by all channels |
| Δ | (D) | (B, L, D) | softplus of x times a matrix of rank R, plus a bias |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from mambabyte.lineage.ssm import associative_scan
from mambabyte.models import MambaByte
from mambabyte.ops import selective_scan

# ## The equations
#
#     B_t = W_B x_t        C_t = W_C x_t        Δ_t = softplus(W_up W_down x_t + bias)
#     h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t
#     y_t = C_t h_t
#
# A is diagonal, as in S4D, so this is N × D separate recurrences. The decay comes from zero-order hold, the
# input's factor from Euler's rule: Mamba simplifies B̄ so, and need not divide by A.


def select(
    x: Tensor, W_B: Tensor, W_C: Tensor, W_down: Tensor, W_up: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Δ (B, L, D), B and C (B, L, N) of x (B, L, D)."""
    delta = softplus(linear(linear(x, W_down), W_up, bias))
    return delta, linear(x, W_B), linear(x, W_C)


def selective_recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y (B, L, D) of u and Δ (B, L, D), A (D, N), B and C (B, L, N)."""
    h, y = u.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[1]):
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[:, t, None, :] * u[:, t, :, None]
        y.append((h * C[:, t, None, :]).sum(-1))
    return torch.stack(y, dim=1)


# ## Δ is a gate
#
# **Theorem 1 of the Mamba paper**: with N = 1, A = −1, B = 1, zero-order hold and Δ = softplus(w x), a
# selective SSM is a gated recurrent network,
#
#     h_t = (1 − g_t) h_{t-1} + g_t x_t        g_t = sigmoid(w x_t)
#
# because exp(−softplus(v)) = 1 − sigmoid(v). It is the moving average of part 1, whose step size the input
# now chooses: a long step lets go of the past and takes this byte in; a step of zero skips the byte.


def gated_recurrence(x: Tensor, g: Tensor) -> Tensor:
    """h (L) of x and g (L)."""
    h, out = x.new_zeros(()), []
    for x_t, g_t in zip(x, g, strict=True):
        h = (1 - g_t) * h + g_t * x_t
        out.append(h)
    return torch.stack(out)


# Our scan, like Mamba's, uses Euler's Δ where the theorem has 1 − exp(−Δ). Their quotient, passed in as B,
# makes up for it:


def theorem_1(x: Tensor, v: Tensor) -> Tensor:
    """h (L) of x and v = w x (L) by `mambabyte.ops.selective_scan`."""
    delta = softplus(v)
    hold = -torch.expm1(-delta) / delta
    A, C = -torch.ones(1, 1, dtype=x.dtype), torch.ones(1, len(x), 1, dtype=x.dtype)
    out = selective_scan(x[None, :, None], delta[None, :, None], A, hold[None, :, None], C)
    assert isinstance(out, Tensor)
    return out.flatten()


# >>> x, w = torch.randn(100, generator=torch.Generator().manual_seed(0)).double(), 3.0
# >>> bool((theorem_1(x, w * x) - gated_recurrence(x, torch.sigmoid(w * x))).abs().max() < 1e-12)
# True
#
# ![Accuracy on copying, where the data stand at fixed places, and on selective copying, where they are
# scattered among noise: how long a model without selection keeps a byte depends on the byte's place, and not
# on what it is.](synthetic_tasks)
#
# ![The mean Δ of every byte in each layer of a trained model, relative to the layer's median. Red: a long
# step, the byte is taken in and the past fades. Blue: a short step, the byte leaves the state almost as it
# was.](delta)


@torch.no_grad()
def step_sizes(model: MambaByte, text: bytes) -> Tensor:
    """Δ of each layer, byte and channel (n_layer, L, D), in fp32, as the model reads a text."""
    found: list[Tensor] = []
    mixers: list[Any] = [block.mixer for block in model.blocks()]

    def keep(projection: Any, _: Any, without_bias: Tensor) -> None:
        found.append(softplus(without_bias[0].float() + projection.bias.float()))

    hooks = [mixer.dt_proj.register_forward_hook(keep) for mixer in mixers]
    try:
        model(text)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found)


# ## Why the convolution is lost
#
# Any causal linear map of a sequence is a lower triangular matrix, y = M u. In one channel of S6
#
#     M_{ts} = C_t exp((Δ_{s+1} + … + Δ_t) A) Δ_s B_s        for s ≤ t
#
# If Δ, B and C are the same at all times, this depends on t − s alone. Then M repeats one row, shifted, and
# is a convolution. Selection makes every row different: there is no kernel, and no FFT.


def mixing_matrix(delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """M (L, L) of one channel: Δ (L), A (N), B and C (L, N)."""
    time = delta.cumsum(0)
    decay = torch.exp((time[:, None] - time).clamp(min=0)[..., None] * A)
    return torch.einsum("tn,tsn,s,sn->ts", C, decay, delta, B).tril()


# ![M of an S4D channel, left, and of an S6 channel, right, on the same 48 inputs (signed square roots). On
# the left each diagonal is constant.](matrices)
#
# ## The hardware-aware scan
#
# The associative scan of part 1 remains: a step is still an affine map of the state, only no longer the same
# one. Written down directly, it stores three tensors of (B, L, D, N), N times the size of the input:


def scan_in_memory(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """As `selective_recurrence`, with all states in memory at once."""
    a = torch.exp(delta.unsqueeze(-1) * A)
    b = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    _, h = associative_scan(a.transpose(0, 1), b.transpose(0, 1))
    return torch.einsum("lbdn,bln->bld", h, C)


# Moving those tensors takes far longer than computing them. A fused kernel reads u, Δ, B and C once, keeps
# the running state in registers, and writes only y. For the backward pass it keeps its inputs and a few
# states, one for each chunk of steps, and **computes the states between them again**: more arithmetic, and
# much less memory.
#
# This can be counted, as `traffic.py` does: an operator moves its inputs and its outputs, and autograd keeps
# what it is given to keep.
#
# ![Bytes for each element of u, fp32, L = 2,048, D = 1,024, N = 16: moved in forward, kept between the
# passes, and moved in backward.](traffic)
#
# ![A layer's forward and backward pass against the length of the sequence, as `benchmarks/scaling.py`
# measured it.](scaling)
#
# The random inputs of the figures and the identities, of one sequence:


def example(length: int, channels: int, states: int = 16) -> tuple[Tensor, ...]:
    """u, Δ (1, L, D), A (D, N), B and C (1, L, N) at random, in fp32."""
    generator = torch.Generator().manual_seed(0)
    u, delta = torch.randn(2, 1, length, channels, generator=generator)
    B, C = torch.randn(2, 1, length, states, generator=generator)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    return u, softplus(delta - 2), A, B, C


# ## The identities
#
# Every form gives the same output, here of one channel with 16 states:
#
# >>> u, delta, A, B, C = (x.double() for x in example(length=100, channels=1))
# >>> y = selective_scan(u, delta, A, B, C)
# >>> bool((selective_recurrence(u, delta, A, B, C) - y).abs().max() < 1e-10)
# True
# >>> bool((scan_in_memory(u, delta, A, B, C) - y).abs().max() < 1e-10)
# True
# >>> M = mixing_matrix(delta[0, :, 0], A[0], B[0], C[0])
# >>> bool((M @ u[0, :, 0] - y[0, :, 0]).abs().max() < 1e-10)
# True
