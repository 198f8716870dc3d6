"""Mamba's selective scan on several backends that agree."""

from __future__ import annotations

from torch import Tensor

from mambabyte.ops.backends import choose_backend
from mambabyte.ops.selective_scan.custom_op import selective_scan_fused
from mambabyte.ops.selective_scan.reference import ScanInputs, selective_scan_reference


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
    """Mamba's selective scan (arXiv 2312.00752, section 3.2) with softplus, skip connection and gate.

    The equations are in `mambabyte.ops.selective_scan.reference`. Letters: B batch, L length, D inner
    channels, N state size. Arithmetic is fp32 for any activations, or fp64 for fp64 ones. Every floating-
    point argument has a gradient, states included, so a scan that is split anywhere and resumed from its
    state equals the whole.

    Args:
        u, delta, z: (B, L, D) input, step size before bias and softplus, and gate (or None).
        A: (D, N), negative: the decay rates. D, delta_bias: (D) skip weight and step-size bias (or None).
        B, C: (B, L, N) input and output projections, shared by all channels.
        initial_state: (B, D, N) state before the first step; zero when None.
        document_start: (B, L) boolean; the state is reset to zero before each marked step.
        backend: "cpu", "cuda", "triton", "mamba_ssm" or "reference"; by default the first of them that serves
            u's device and dtype and this call. See `mambabyte.ops.backends` for what each serves and how to
            override it.

    Returns:
        out (B, L, D) in u's dtype, and with `return_final_state` the state (B, D, N) after the last step, in
        fp32 (fp64).

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot serve this call.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, document_start)
    _check_shapes(inputs)
    backend = choose_backend(
        "selective_scan", u.device, u.dtype, backend, states=A.shape[1],
        initial_state=initial_state is not None, document_start=document_start is not None,
    )  # fmt: skip
    fused = backend != "reference"
    out, state = selective_scan_fused(backend, inputs) if fused else selective_scan_reference(inputs)
    return (out, state) if return_final_state else out


def _check_shapes(inputs: ScanInputs) -> None:
    u, A = inputs.u, inputs.A
    if u.dim() != 3 or A.dim() != 2 or 0 in u.shape:
        raise ValueError(
            f"u must be a non-empty (B, L, D) and A (D, N), not {tuple(u.shape)} and {tuple(A.shape)}"
        )
    sizes = {"B": u.shape[0], "L": u.shape[1], "D": u.shape[2], "N": A.shape[1]}
    dimensions = {
        "delta": "BLD", "A": "DN", "B": "BLN", "C": "BLN", "D": "D", "z": "BLD", "delta_bias": "D",
        "initial_state": "BDN", "document_start": "BL",
    }  # fmt: skip
    for name, letters in dimensions.items():
        tensor, shape = getattr(inputs, name), tuple(sizes[letter] for letter in letters)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")
