"""HiPPO-LegS, the matrix that S4 begins with (arXiv 2008.07669; 2111.00396, section 3 and appendix C)."""

from __future__ import annotations

import functools

import numpy as np


@functools.cache
def normal_and_low_rank(states: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrix A[n, k] = -sqrt(2n + 1) sqrt(2k + 1) for n > k, -(n + 1) for n = k, as V (L - P P*) V*.

    Returns:
        the complex vectors L, P and V* B, with B[n] = sqrt(2n + 1), of the `states` / 2 eigenvalues with
        positive imaginary parts, ascending. The others are their conjugates.
    """
    n = np.arange(states)
    low_rank, B = np.sqrt(n + 0.5), np.sqrt(2 * n + 1)
    A = -np.tril(np.outer(B, B), -1) - np.diag(n + 1.0)
    skew = A + np.outer(low_rank, low_rank) + 0.5 * np.eye(states)  # its diagonal is zero
    frequencies, V = np.linalg.eigh(skew / 1j)
    chosen = slice(states // 2, None)
    V = V[:, chosen]
    return -0.5 + 1j * frequencies[chosen], V.conj().T @ low_rank, V.conj().T @ B
