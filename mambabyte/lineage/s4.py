"""3. S4: the long convolution, made cheap

A model with HiPPO's A trains as a convolution. But its kernel K_l = C Ā^l B̄ (part 1) costs N² operations for
each step, one after another, and LegS cannot be diagonalised in floating-point numbers: its eigenvectors grow
exponentially with N. S4 (arXiv 2111.00396) finds a form of A that allows a fast and stable formula for the
whole kernel. S4D (arXiv 2206.11893) then shows that a simpler form does nearly as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mambabyte.lineage.hippo import legs

# ## Normal plus low rank
#
# LegS becomes normal, and so unitarily diagonalisable, by adding a matrix of rank 1:
#
#     A = V Λ V* − P P^T        P_n = √(n + ½)
#
# A + P Pᵀ is −½ I plus a skew-symmetric matrix. So every eigenvalue has the real part −½, and the imaginary
# parts come from a Hermitian eigenproblem, which is well-conditioned.


def normal_plus_low_rank(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Λ (N) and V (N, N), complex, and P (N) of LegS."""
    A, _ = legs(size)
    P = (torch.arange(size, dtype=torch.float64) + 0.5).sqrt()
    skew = A + torch.outer(P, P) + 0.5 * torch.eye(size, dtype=torch.float64)
    frequencies, V = torch.linalg.eigh(-1j * skew)
    return -0.5 + 1j * frequencies, V, P


# In the coordinates V the system is Λ − P P* with P, B and C multiplied by V* (C by V). A **generating
# function** takes the place of the powers of Ā. At a root of unity, z^L = 1, the sum of a geometric series
# gives
#
#     Σ_{l<L} C Ā^l B̄ z^l = C̃ (I − z Ā)^{−1} B̄        C̃ = C (I − Ā^L)
#
# and the bilinear rule turns the inverse of Ā into one of A:
#
#     … = 2 C̃ (D + (1 + z) P P*)^{−1} B        D = (2/Δ)(1 − z) − (1 + z) Λ
#
# D is diagonal. **Woodbury's identity** inverts a diagonal plus rank 1, so four sums over the states are
# left:
#
#     (D + (1+z) P P*)^{−1} = D^{−1} − (1+z) D^{−1} P (1 + (1+z) P* D^{−1} P)^{−1} P* D^{−1}
#
# Up to a factor, each is a **Cauchy product**, Σ_n v_n / (g(z) − λ_n), for which there are fast algorithms.


def cauchy(v: Tensor, D: Tensor) -> Tensor:
    """The sum over n of v (N) / D (L, N): (L)."""
    return (v / D).sum(-1)


def generating_function(
    Lambda: Tensor, P: Tensor, B: Tensor, C_tilde: Tensor, step: float, z: Tensor
) -> Tensor:
    """Its values (L) at z (L), roots of unity, for A = Λ − P P*; all complex, (N)."""
    D = 2 / step * (1 - z[:, None]) - (1 + z[:, None]) * Lambda
    low_rank = 1 + (1 + z) * cauchy(P.conj() * P, D)
    correction = (1 + z) * cauchy(C_tilde * P, D) * cauchy(P.conj() * B, D) / low_rank
    return 2 * (cauchy(C_tilde * B, D) - correction)


# The values of a polynomial at the roots of unity are its Fourier transform. So its coefficients, which are
# the kernel, follow by one inverse FFT.


def s4_kernel(C: Tensor, step: float, length: int) -> Tensor:
    """K (L) of LegS, read by C (N), in O(N L) operations beside Ā^L, by log₂ L products of matrices."""
    Lambda, V, P = normal_plus_low_rank(len(C))
    B, P, C = V.mH @ legs(len(C))[1].to(V.dtype), V.mH @ P.to(V.dtype), C.to(V.dtype) @ V
    A, identity = torch.diag(Lambda) - torch.outer(P, P.conj()), torch.eye(len(C))
    A_bar = torch.linalg.solve(identity - step / 2 * A, identity + step / 2 * A)
    C_tilde = C - C @ torch.linalg.matrix_power(A_bar, length)  # what S4 stores and trains
    z = torch.exp(-2j * math.pi * torch.arange(length, dtype=torch.float64) / length)
    return torch.fft.ifft(generating_function(Lambda, P, B, C_tilde, step, z)).real


# ## Diagonal is enough: S4D
#
# Leave P out, and only D is left to invert. With zero-order hold the kernel is a sum of N damped waves:
#
#     K_l = 2 Re Σ_n C_n B̄_n exp(lΔλ_n)        B̄_n = (exp(Δλ_n) − 1) / λ_n
#
# Eigenvalues come in conjugate pairs, so half of them and twice the real part suffice. The operator of
# `models/gated_s4d.py` computes the same sum without ever storing the L × N powers.


def s4d_kernel(Lambda: Tensor, C: Tensor, step: float, length: int) -> Tensor:
    """K (L) for λ and C (N/2), complex, and B = 1."""
    B_bar = torch.expm1(step * Lambda) / Lambda
    powers = torch.exp(torch.arange(length, dtype=torch.float64)[:, None] * step * Lambda)
    return 2 * (powers @ (C * B_bar)).real


# Where do the eigenvalues begin? S4D-LegS takes those of LegS's normal part, and Inv is a formula that
# follows them. Lin spaces the frequencies evenly, as a Fourier series does. Real gives up the waves, and is
# what Mamba starts from.
#
#     Inv        λ_n = −½ + i (N/π) (N/(2n+1) − 1)
#     Lin        λ_n = −½ + iπn
#     Real       λ_n = −(n+1)


def s4d_legs(size: int) -> Tensor:
    """Λ (N/2), those of positive imaginary part, the largest first."""
    return normal_plus_low_rank(size)[0].flip(0)[: size // 2]


def s4d_inv(size: int) -> Tensor:
    n = torch.arange(size // 2, dtype=torch.float64)
    return -0.5 + 1j * size / math.pi * (size / (2 * n + 1) - 1)


def s4d_lin(size: int) -> Tensor:
    return -0.5 + 1j * math.pi * torch.arange(size // 2, dtype=torch.float64)


def s4d_real(size: int) -> Tensor:
    """All N: they are real and have no conjugates."""
    return -torch.arange(1, size + 1, dtype=torch.float64)


# ![Left: where the eigenvalues start, N = 64 (Real reaches to −64). Right: the kernels that they give with C
# = 1 and Δ = 0.01. All of Lin's waves meet again after two seconds, 200 steps.](kernels)
#
# ## The identity
#
# The kernel by Cauchy products is the kernel by powers of Ā, here over 512 steps of a system of 32 states:
#
# >>> from mambabyte.lineage import ssm
# >>> C = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# >>> powers = ssm.kernel(*ssm.bilinear(*legs(32), step=0.01), C, 512)
# >>> bool((s4_kernel(C, 0.01, 512) - powers).abs().max() < 1e-10)
# True
