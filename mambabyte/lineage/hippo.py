"""2. HiPPO: a state that remembers

Which A makes a good memory? A random one forgets, or explodes. HiPPO (arXiv 2008.07669) derives A from a
task: at every moment, the state shall hold the coefficients of the polynomial that comes nearest to the whole
input so far. Polynomials of degree below N, and nearness in the mean square, give

    f(x) ≈ Σ_n c_n φ_n(x)        φ_n(x) = √(2n+1) P_n(x)

with the Legendre polynomials P_n, stretched over the past. Differentiating c_n by time gives a differential
equation for c, and that is the state space.
"""

from __future__ import annotations

import torch
from numpy.polynomial.legendre import legvander
from torch import Tensor

from mambabyte.lineage.ssm import bilinear

# ## All of the past: LegS
#
# If the past from 0 to t counts evenly, the polynomials must be stretched as t grows, and so the equation
# contains t:
#
#     c′(t) = (1/t) (A c(t) + B u(t))
#
#     A_{nk} = −√(2n+1) √(2k+1) for n > k,        −(n+1) for n = k,        0 for n < k
#     B_n = √(2n+1)


def legs(size: int) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N) in float64."""
    n = torch.arange(size, dtype=torch.float64)
    B = (2 * n + 1).sqrt()
    return -torch.outer(B, B).tril(-1) - torch.diag(n + 1), B


# The factor 1/t means that there is no time scale: a signal that is played at half the speed has the same
# coefficients. In steps of one, value k lies between k − 1 and k, so the bilinear rule takes t in the middle,
# k − ½, and Δ/t is the step size. A is triangular: a step costs N² operations, and the first n coefficients
# do not depend on how many more are kept.


def remember_all(u: Tensor, size: int) -> Tensor:
    """The coefficients c (N) of u (L), float64, computed online: no value is seen twice."""
    (A, B), identity, c = legs(size), torch.eye(size, dtype=torch.float64), torch.zeros(size).double()
    for k, u_k in enumerate(u, start=1):
        step = 1 / (k - 0.5)
        update = (identity + step / 2 * A) @ c + step * B * u_k
        c = torch.linalg.solve_triangular(identity - step / 2 * A, update[:, None], upper=False)[:, 0]
    return c


# Reading the memory is evaluating the polynomial. x runs from −1, the oldest value, to 1, the newest.


def basis(length: int, size: int) -> Tensor:
    """φ_n (L, N) in the middle of each of L steps."""
    x = (2 * torch.arange(length, dtype=torch.float64) + 1) / length - 1
    scale = (2 * torch.arange(size, dtype=torch.float64) + 1).sqrt()
    return torch.from_numpy(legvander(x.numpy(), size - 1)) * scale


def reconstruct(c: Tensor, length: int) -> Tensor:
    """The polynomial of c (N) at each of L steps."""
    return basis(length, len(c)) @ c


# The definition itself, which sees the whole signal at once, is what the online coefficients are held
# against:
#
#     c_n = (1/L) Σ_k u_k φ_n(x_k)


def project(u: Tensor, size: int) -> Tensor:
    """The coefficients c (N) of u (L) by their definition."""
    return u @ basis(len(u), size) / len(u)


# ![10,000 values, one after another, into 64 coefficients. LegS reconstructs the whole past evenly; LegT,
# below, the last 2,000 values more sharply, and nothing before.](reconstruction)
#
# How good can 64 numbers be? That depends on the signal, not on its length. The mean error falls as N^{-s}
# for a signal with s derivatives in the mean square: slowly at a jump (s = ½), faster at a kink (s = 1½), and
# faster than any power where the signal is smooth.
#
# ![The error of the online reconstruction against N. Dashed: the slopes that theory
# predicts.](reconstruction_error)
#
# ## A window of the past: LegT
#
# If only the last θ seconds count, they slide instead of stretching. The matrix is then constant, and what
# leaves the window at its old end is replaced by the polynomial's own value there:
#
#     A_{nk} = −(1/θ) √(2n+1) √(2k+1) · (1 for k ≤ n,  (−1)^{n−k} for k > n)
#     B_n = (1/θ) √(2n+1)


def legt(size: int, window: float) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N) in float64, for a window in the unit of the step size."""
    n = torch.arange(size, dtype=torch.float64)
    scale = (2 * n + 1).sqrt()
    sign = torch.where(n[:, None] < n, (-1) ** (n[:, None] - n), 1.0)
    return -torch.outer(scale, scale) * sign / window, scale / window


def remember_window(u: Tensor, size: int, window: int) -> Tensor:
    """The coefficients c (N) of the last values of u (L), float64, computed online."""
    A_bar, B_bar = bilinear(*legt(size, window), step=1.0)
    c = torch.zeros(size, dtype=torch.float64)
    for u_k in u:
        c = A_bar @ c + B_bar * u_k
    return c


# ## Why A remembers
#
# S4, the next part, takes LegS's A and B and leaves the factor 1/t out, because a convolution needs a
# constant matrix. What the states then hold can still be said exactly. The response of state n to a pulse t
# seconds ago is
#
#     (exp(tA) B)_n = e^{−t} √(2n+1) P_n(2e^{−t} − 1)
#
# Each state weighs the past by e^{−t} times a Legendre polynomial of e^{−t}: the states remember the near
# past finely and the far past coarsely, and no two of them remember the same. The step size Δ says how many
# steps e^{−t} reaches.


def warped_basis(t: Tensor, size: int) -> Tensor:
    """The right side (T, N) at times t (T)."""
    scale = (2 * torch.arange(size, dtype=torch.float64) + 1).sqrt()
    near = torch.exp(-t)
    return near[:, None] * torch.from_numpy(legvander((2 * near - 1).numpy(), size - 1)) * scale


# ![The first five states' memory of a pulse: exp(tA) B.](memory)
#
# ## The identities
#
# The online coefficients are those of the definition, up to the error of the steps; and A's memory is the
# warped basis:
#
# >>> u = torch.sin(torch.arange(2000) / 100).double()
# >>> bool((remember_all(u, 16) - project(u, 16)).abs().max() < 1e-3)
# True
# >>> A, B = legs(16)
# >>> memory = torch.linalg.matrix_exp(0.7 * A) @ B
# >>> torch.allclose(memory, warped_basis(torch.tensor([0.7]).double(), 16)[0], atol=1e-10)
# True
#
# LegT is no exact projection, as it guesses what leaves the window. Where the signal is smooth, the guess is
# good:
#
# >>> bool((remember_window(u, 16, 500) - project(u[-500:], 16)).abs().max() < 1e-3)
# True
