"""A linear recurrence of matrices with one decay per head: Mamba-2's SSD, and linear attention."""

from __future__ import annotations

from torch import Tensor

from mambabyte.ops.backends import choose_backend
from mambabyte.ops.ssd.custom_op import ssd_fused
from mambabyte.ops.ssd.reference import SSDInputs, ssd_reference


def ssd(
    x: Tensor,
    log_decay: Tensor | None,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    document_start: Tensor | None = None,
    chunk: int = 64,
    backend: str | None = None,
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
        chunk: steps of one matrix product of the reference; the fused backends have their own.
        backend: "cpu", "triton" or "reference"; by default the first that serves x's device and dtype and
            this call. See `mambabyte.ops.backends` for what each serves and how to override it.

    Returns:
        y (B, L, H, P) in x's dtype, and with `return_final_state` the state (B, H, P, N) after the last step,
        in fp32 (fp64).

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot serve this call.
    """
    inputs = SSDInputs(x, log_decay, B, C, initial_state, document_start)
    _check_shapes(inputs)
    backend = choose_backend("ssd", x.device, x.dtype, backend, channels=x.shape[3], states=B.shape[3])
    if backend == "reference":
        y, state = ssd_reference(inputs, min(chunk, x.shape[1]))
    else:
        y, state = ssd_fused(backend, inputs)
    return (y, state) if return_final_state else y


def _check_shapes(inputs: SSDInputs) -> None:
    x, B = inputs.x, inputs.B
    if x.dim() != 4 or B.dim() != 4 or 0 in (*x.shape, *B.shape) or x.shape[2] % B.shape[2]:
        raise ValueError(
            "x and B must be non-empty, (B, L, H, P) and (B, L, G, N) with H a multiple of G, not "
            f"{tuple(x.shape)} and {tuple(B.shape)}"
        )
    batch, length, heads, channels = x.shape
    groups, states = B.shape[2:]
    expected = {
        "log_decay": (batch, length, heads),
        "B": (batch, length, groups, states),
        "C": (batch, length, groups, states),
        "initial_state": (batch, heads, channels, states),
        "document_start": (batch, length),
    }
    for name, shape in expected.items():
        tensor = getattr(inputs, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")
