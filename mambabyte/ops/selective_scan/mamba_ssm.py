"""mamba_ssm's compiled scan for CUDA: without initial states and document starts, for N up to 256.

The extension's functions take channels before time (mamba_ssm 2.x, `ops/selective_scan_interface.py` and
`csrc/selective_scan/selective_scan.cpp`):

    fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> out, x[, out_z]
    bwd(u, delta, A, B, C, D, z, delta_bias, grad_out, x, out, grad_z, delta_softplus, recompute_out_z)
        -> grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_delta_bias[, grad_z]

with u, delta, z (B, D, L) and B, C (B, 1, N, L) of one dtype, A, D and delta_bias fp32, and x (B, D, chunks,
2 N) fp32, where the last chunk's odd entries are the final state. It sums gradients with atomic additions,
so they may differ in the last bits from run to run. It has no gradient of the final state: where something
depends on that, the backward pass is the reference's.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from mambabyte.ops.cpu.arguments import contiguous
from mambabyte.ops.selective_scan.reference import ScanInputs, selective_scan_reference

MAX_STATES = 256  # MAX_DSTATE of the extension
_CHUNK = 2048  # steps


def available() -> tuple[bool, str]:
    """Whether the compiled scan can run here, and why or why not."""
    for name in ("mamba_ssm", "selective_scan_cuda"):
        if importlib.util.find_spec(name) is None:
            return False, f"{name} is not installed"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    return True, "mamba_ssm's selective_scan_cuda"


def cannot_serve(*, states: int, initial_state: bool, document_start: bool, **_: Any) -> str | None:
    """Why a call with N = `states`, an initial state or document starts cannot run here; None if it can."""
    for name, given in (("initial_state", initial_state), ("document_start", document_start)):
        if given:
            return f"mamba_ssm's scan takes no {name}"
    if states > MAX_STATES:
        return f"mamba_ssm's scan takes at most {MAX_STATES} states, not {states}"
    return None


def _extension() -> Any:
    return importlib.import_module("selective_scan_cuda")


def _as_the_extension_reads(inputs: ScanInputs) -> tuple[Tensor | None, ...]:
    """The first eight arguments of `fwd` and `bwd`; see `forward` for what it raises."""
    u, delta, A, B, C, D, z, delta_bias, _, initial_state, document_start = inputs
    objection = cannot_serve(
        states=A.shape[1], initial_state=initial_state is not None, document_start=document_start is not None
    )
    if objection is not None:
        raise ValueError(objection)

    def time_last(tensor: Tensor) -> Tensor:
        return tensor.to(u.dtype).transpose(1, 2).contiguous()

    B, C = time_last(B).unsqueeze(1), time_last(C).unsqueeze(1)
    z = None if z is None else time_last(z)
    return time_last(u), time_last(delta), contiguous(A), B, C, contiguous(D), z, contiguous(delta_bias)


def states_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Shape of the states that `forward` keeps: the extension scans 2,048 steps at a time."""
    return u.shape[0], u.shape[2], -(-u.shape[1] // _CHUNK), 2 * A.shape[1]


def forward(inputs: ScanInputs, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, L, D) in u's dtype, the final state (B, D, N) fp32, and for backward the extension's x of shape
    `states_shape`, or an empty tensor.

    Raises:
        ValueError: what `cannot_serve` says.
    """
    arguments = _as_the_extension_reads(inputs)
    out, x, *gated = _extension().fwd(*arguments, inputs.delta_softplus)
    final_state = x[:, :, -1, 1::2].contiguous()
    out = (gated[0] if gated else out).transpose(1, 2).contiguous()
    return out, final_state, x if keep_states else x.new_empty(0)


def backward(
    grad_out: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, states: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias in their dtypes, and None for the initial state.

    Raises:
        ValueError: what `cannot_serve` says.
    """
    if grad_final_state is not None:
        return _backward_of_the_reference(grad_out, grad_final_state, inputs)
    arguments = _as_the_extension_reads(inputs)
    extension = _extension()
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, *_ = inputs
    # The gate's gradient needs the scan's output before the gate, which the forward pass does not return.
    ungated = None if z is None else extension.fwd(*arguments, delta_softplus)[0]
    grad = grad_out.to(u.dtype).transpose(1, 2).contiguous()
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias, *rest = extension.bwd(
        *arguments, grad, states, ungated, None, delta_softplus, False
    )
    return (
        grad_u.transpose(1, 2).contiguous(),
        grad_delta.transpose(1, 2).to(delta.dtype).contiguous(),
        grad_A.to(A.dtype),
        grad_B.squeeze(1).transpose(1, 2).to(B.dtype).contiguous(),
        grad_C.squeeze(1).transpose(1, 2).to(C.dtype).contiguous(),
        None if D is None else grad_D.to(D.dtype),
        None if z is None else rest[0].transpose(1, 2).to(z.dtype).contiguous(),
        None if delta_bias is None else grad_bias.to(delta_bias.dtype),
        None,
    )


def _backward_of_the_reference(
    grad_out: Tensor, grad_final_state: Tensor, inputs: ScanInputs
) -> tuple[Tensor | None, ...]:
    leaves = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    with torch.enable_grad():
        outputs = selective_scan_reference(ScanInputs._make(leaves))
    present = [x for x in leaves if isinstance(x, Tensor)]
    found = iter(torch.autograd.grad(outputs, present, (grad_out, grad_final_state)))
    return (*(None if x is None else next(found) for x in leaves[:8]), None)
