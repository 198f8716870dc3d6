"""1. The linear state space

A state space model keeps a state h of N numbers. The input u drives the state, and the output y is read from
it:

    h′(t) = A h(t) + B u(t)
    y(t) = C h(t)

A (N, N) says how the state moves by itself, B (N) how the input enters it, and C (N) what is read from it.
This part turns the equation into a sequence model, and computes that model in three ways: step by step, as a
convolution, and by a parallel scan.
"""

from __future__ import annotations

import torch
from torch import Tensor

# ## From time to steps
#
# A sequence has a value every Δ seconds. **Zero-order hold** takes the input to be constant between two
# values. Then the differential equation can be solved exactly:
#
#     h_k = Ā h_{k-1} + B̄ u_k        Ā = exp(ΔA)        B̄ = (Ā − I) A^{−1} B
#
# A and Ā commute, so A⁻¹ may stand on either side.


def zero_order_hold(A: Tensor, B: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Ā (N, N) and B̄ (N) of A (N, N), which must be invertible, and B (N)."""
    A_bar = torch.linalg.matrix_exp(step * A)
    return A_bar, torch.linalg.solve(A, (A_bar - torch.eye(len(A), dtype=A.dtype)) @ B)


# Two approximations need no exponential. **Euler's rule** takes the slope at the start of a step, and the
# **bilinear rule** the mean of the slopes at its two ends:
#
#     Euler        Ā = I + ΔA        B̄ = ΔB
#     bilinear     Ā = (I − ½ΔA)^{−1} (I + ½ΔA)        B̄ = (I − ½ΔA)^{−1} ΔB


def euler(A: Tensor, B: Tensor, step: float) -> tuple[Tensor, Tensor]:
    return torch.eye(len(A), dtype=A.dtype) + step * A, step * B


def bilinear(A: Tensor, B: Tensor, step: float) -> tuple[Tensor, Tensor]:
    identity = torch.eye(len(A), dtype=A.dtype)
    ahead = identity - step / 2 * A
    return torch.linalg.solve(ahead, identity + step / 2 * A), torch.linalg.solve(ahead, step * B)


# ![A damped oscillator after a switch is thrown. Left: steps of 0.35 s, at which Euler's rule explodes and
# leaves the figure. Right: halving the step quarters the bilinear rule's error and, once the steps are short,
# halves Euler's; zero-order hold has none, because this input is constant.](discretisation)
#
# The rules share A and B, which belong to the system, and not Δ, which belongs to the data. **Δ is the
# resolution**: a model of speech at 16 kHz runs at 8 kHz with 2Δ. For an input that is held, two half steps
# are one step:


def random_system(size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A (N, N), B (N), C (N) of a stable system in float64: it turns, and decays at the rate 1/2."""
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(size, size, generator=generator, dtype=torch.float64)
    B, C = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return G - G.T - 0.5 * torch.eye(size, dtype=torch.float64), B, C


# >>> A, B, C = random_system(6)
# >>> A_bar, B_bar = zero_order_hold(A, B, 0.1)
# >>> A_half, B_half = zero_order_hold(A, B, 0.05)
# >>> torch.allclose(A_half @ A_half, A_bar, atol=1e-11)
# True
# >>> torch.allclose(A_half @ B_half + B_half, B_bar, atol=1e-11)
# True
#
# The smallest example has one state, A = −1 and B = C = 1. It is the **exponential moving average**, and its
# gate g is set by the step size:
#
#     h_k = (1 − g) h_{k-1} + g u_k        g = 1 − exp(−Δ)
#
# A long step forgets the past and takes the input; a short one keeps the past. Part 4 makes Δ depend on the
# input, and with it the gate.


def moving_average_gate(step: float) -> tuple[float, float]:
    """What zero-order hold makes of A = −1, B = 1: (1 − g, g)."""
    A_bar, B_bar = zero_order_hold(-torch.ones(1, 1).double(), torch.ones(1).double(), step)
    return A_bar.item(), B_bar.item()


# >>> keeps, takes = moving_average_gate(0.1)
# >>> print(f"{keeps:.4f} {takes:.4f}")
# 0.9048 0.0952
#
# ## First view: a recurrence
#
# One step costs a fixed amount of work and memory, however long the past is. That is how such a model
# generates.


def recurrence(A_bar: Tensor, B_bar: Tensor, C: Tensor, u: Tensor) -> Tensor:
    """y (L) of u (L), from a state of zeros."""
    h, y = torch.zeros_like(B_bar), []
    for u_k in u:
        h = A_bar @ h + B_bar * u_k
        y.append(C @ h)
    return torch.stack(y)


# ## Second view: a convolution
#
# Unrolled, the recurrence is a sum over the past, with weights that depend only on how long ago an input
# came:
#
#     y_k = Σ_l K_l u_{k-l}        K_l = C Ā^l B̄
#
# So training can compute all outputs at once, by FFT, in L log L operations.


def kernel(A_bar: Tensor, B_bar: Tensor, C: Tensor, length: int) -> Tensor:
    """K (L), the response to a single 1."""
    power_B, K = B_bar, []
    for _ in range(length):
        K.append(C @ power_B)
        power_B = A_bar @ power_B
    return torch.stack(K)


def convolution(K: Tensor, u: Tensor) -> Tensor:
    """y (L): the causal convolution of K (L) and u (L)."""
    size = 2 * len(u)  # zeros behind both, so that the end does not wrap around to the beginning
    return torch.fft.irfft(torch.fft.rfft(K, size) * torch.fft.rfft(u, size), size)[: len(u)]


# ## Third view: an associative scan
#
# In the eigenvectors of Ā the states do not mix: Ā becomes the vector of its eigenvalues, and a step is N
# separate multiplications. The change of coordinates leaves y as it was.


def diagonalise(A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same system in the eigenvectors of A: its eigenvalues (N), B and C (N), all complex."""
    eigenvalues, V = torch.linalg.eig(A)
    return eigenvalues, torch.linalg.solve(V, B.to(V.dtype)), C.to(V.dtype) @ V


# A step is the map h → a h + b. One step after another is again such a map, and that is the **scan
# operator**:
#
#     (a_2, b_2) ∘ (a_1, b_1) = (a_2 a_1,  a_2 b_1 + b_2)


def compose(later: tuple[Tensor, Tensor], earlier: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    (a_2, b_2), (a_1, b_1) = later, earlier
    return a_2 * a_1, a_2 * b_1 + b_2


# It is associative, so steps may be composed in any grouping. On four steps, two rounds give the last state
# where a recurrence takes three, and a third round fills in what is left:
#
#     round 1        (a_2 a_1, a_2 b_1 + b_2)        (a_4 a_3, a_4 b_3 + b_4)
#     round 2        (a_4 a_3 a_2 a_1, a_4 a_3 (a_2 b_1 + b_2) + a_4 b_3 + b_4)
#     round 3        (a_3 a_2 a_1, a_3 (a_2 b_1 + b_2) + b_3)
#
# >>> a, b = torch.full((4,), 0.5), torch.tensor([1.0, 2.0, 3.0, 4.0])
# >>> first, second = compose((a[1], b[1]), (a[0], b[0])), compose((a[3], b[3]), (a[2], b[2]))
# >>> compose(second, first)
# (tensor(0.0625), tensor(6.1250))
#
# The general rule (Blelloch, 1990): compose neighbours, scan the half that results, which gives every second
# state, and compose once more for the states between.


def associative_scan(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The composition of each step (a, b) of (L, ...) with all before it: in b, the states."""
    if len(a) == 1:
        return a, b
    odd = associative_scan(*compose((a[1::2], b[1::2]), (a[:-1:2], b[:-1:2])))
    even = compose((a[2::2], b[2::2]), (odd[0][: len(a[2::2])], odd[1][: len(a[2::2])]))
    a, b = a.clone(), b.clone()
    a[1::2], b[1::2] = odd
    a[2::2], b[2::2] = even
    return a, b


def scan(a: Tensor, B_bar: Tensor, C: Tensor, u: Tensor) -> Tensor:
    """y (L) of u (L) by a diagonal system: a, B̄ and C (N), from `diagonalise`."""
    _, h = associative_scan(a.expand(len(u), -1), B_bar * u[:, None])
    return (h @ C).real


# >>> associative_scan(a, b)[1]
# tensor([1.0000, 2.5000, 4.2500, 6.1250])
#
# Scanning L steps takes nearly 2L compositions where the recurrence takes L − 1. In exchange, those of a
# round can run at the same time: with t processors the rounds take about 2L/t + 2 log₂ L compositions' time.


def rounds(length: int, processors: int) -> int:
    """The time of `associative_scan`, counted in compositions, of which each processor does one at a time."""
    if length == 1:
        return 0
    neighbours, between = length // 2, (length - 1) // 2
    return -(-neighbours // processors) + rounds(neighbours, processors) + -(-between // processors)


# >>> [rounds(8192, processors) for processors in (1, 16, 256, 8192)]
# [16369, 1029, 77, 25]
#
# ## The identity
#
# The three views are one map:
#
# >>> u = torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
# >>> stepped = recurrence(A_bar, B_bar, C, u)
# >>> convolved = convolution(kernel(A_bar, B_bar, C, 200), u)
# >>> scanned = scan(*diagonalise(A_bar, B_bar, C), u)
# >>> bool((stepped - convolved).abs().max() < 1e-10), bool((stepped - scanned).abs().max() < 1e-10)
# (True, True)
