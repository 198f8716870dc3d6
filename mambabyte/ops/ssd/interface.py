"""A linear recurrence of matrices with one decay per head: Mamba-2's SSD, and linear attention."""

from __future__ import annotations

from torch import Tensor

from mambabyte.ops.ssd.reference import ssd_reference


def ssd(
    x: Tensor,
    log_decay: Tensor | None,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    document_start: Tensor | None = None,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """The state space dual form (Mamba-2, arXiv 2405.21060, equation 1 with A a scalar for each head):

        h[t] = exp(log_decay[t]) h[t-1] + x[t] B[t]^T            (P, N)
        y[t] = h[t] C[t]                                         (P)

    It is computed by chunks of matrix products (section 6), in time linear in L. Letters: B batch, L length,
    H heads, P channels of a head, N state size, G groups of heads that share B and C (H is a multiple of G).
    Arithmetic is fp32 for any activations, or fp64 for fp64 ones. Every floating-point argument has a
    gradient, states included, so a recurrence that is split anywhere and resumed from its state equals the
    whole.

    Args:
        x: (B, L, H, P), with the step size multiplied in. log_decay: (B, L, H), at most 0; None: no decay.
        B, C: (B, L, G, N).
        initial_state: (B, H, P, N), the state before the first step; zero when None.
        document_start: (B, L) boolean; the state is reset to zero before each marked step.
        chunk: steps of one matrix product.

    Returns:
        y (B, L, H, P) in x's dtype, and with `return_final_state` the state (B, H, P, N) after the last step,
        in fp32 (fp64).

    Raises:
        ValueError: shapes that do not fit together.
    """
    _check_shapes(x, log_decay, B, C, initial_state, document_start)
    y, state = ssd_reference(x, log_decay, B, C, initial_state, document_start, min(chunk, x.shape[1]))
    return (y, state) if return_final_state else y


def _check_shapes(
    x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, initial_state: Tensor | None,
    document_start: Tensor | None,
) -> None:  # fmt: skip
    if x.dim() != 4 or 0 in x.shape or B.dim() != 4 or x.shape[2] % max(1, B.shape[2]):
        raise ValueError(
            "x must be a non-empty (B, L, H, P) and B (B, L, G, N) with H a multiple of G, not "
            f"{tuple(x.shape)} and {tuple(B.shape)}"
        )
    batch, length, heads, channels = x.shape
    groups, states = B.shape[2:]
    expected = {
        "log_decay": (log_decay, (batch, length, heads)),
        "B": (B, (batch, length, groups, states)),
        "C": (C, (batch, length, groups, states)),
        "initial_state": (initial_state, (batch, heads, channels, states)),
        "document_start": (document_start, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")
