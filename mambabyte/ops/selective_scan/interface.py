"""The selective scan, whatever it runs on."""

from __future__ import annotations

from torch import Tensor

from mambabyte.ops.backends import choose_backend
from mambabyte.ops.selective_scan.fused import selective_scan_fused
from mambabyte.ops.selective_scan.reference import selective_scan_reference


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    document_start: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's selective recurrence (arXiv 2312.00752, section 3.2), with softplus, skip and gate.

    Letters: B batch, L length, D inner channels, N state size. Arithmetic is fp32 whatever
    the activations are, fp64 when they are fp64. Every floating argument has a gradient, the states included,
    so that a scan cut anywhere and carried on from its state equals the whole.

    Args:
        u, delta, z: (B, L, D) input, step size before bias and softplus, and gate (or None).
        A: (D, N), negative: the decay rates. D, delta_bias: (D) skip weight and step-size bias (or None).
        B, C: (B, L, N) input and output projections, shared by all channels.
        initial_state: (B, D, N) state before the first step; zero when None.
        document_start: (B, L) boolean; the state is reset to zero before each marked step.
        backend: "reference" or "cpu"; by default the fastest one that serves the tensors' device and dtype.

    Returns:
        out (B, L, D) in u's dtype, and with `return_final_state` the state (B, D, N) after the last step,
        fp32 (fp64).

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot serve these tensors.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state, document_start)
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, document_start)
    backend = choose_backend("selective_scan", u.device, u.dtype, backend)
    if backend == "reference":
        out, state = selective_scan_reference(*arguments)
    else:
        out, state = selective_scan_fused(backend, *arguments)
    return (out, state) if return_final_state else out


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, document_start: Tensor | None,
) -> None:  # fmt: skip
    if u.dim() != 3 or A.dim() != 2 or 0 in u.shape:
        raise ValueError(
            f"u must be a non-empty (B, L, D) and A (D, N), not {tuple(u.shape)} and {tuple(A.shape)}"
        )
    batch, length, channels = u.shape
    states = A.shape[1]
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("delta", delta, (batch, length, channels)),
        ("A", A, (channels, states)),
        ("B", B, (batch, length, states)),
        ("C", C, (batch, length, states)),
        ("D", D, (channels,)),
        ("z", z, (batch, length, channels)),
        ("delta_bias", delta_bias, (channels,)),
        ("initial_state", initial_state, (batch, channels, states)),
        ("document_start", document_start, (batch, length)),
    ]
    for name, tensor, shape in expected:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")
