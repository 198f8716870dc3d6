"""Depthwise causal convolution followed by SiLU: what a Mamba block applies before the scan."""

from __future__ import annotations

from torch import Tensor

from mambabyte.ops.backends import choose_backend
from mambabyte.ops.causal_conv1d.custom_op import ConvInputs, causal_conv1d_fused
from mambabyte.ops.causal_conv1d.reference import causal_conv1d_reference, last_inputs


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    document_start: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal convolution of every channel on its own, then SiLU (arXiv 2312.00752, figure 3):

        out[t] = silu(bias + sum_j weight[:, W-1-j] x[:, t-j]),    j = 0 .. W-1

    Args:
        x: (B, L, D). weight: (D, W); the last column multiplies the current input. bias: (D) or None.
        initial_state: (B, W-1, D), the inputs before the first step, oldest first; zero when None.
        document_start: (B, L) boolean; a marked step and those after it see nothing before it.
        backend: "cpu", "triton" (widths 2 to 4; others run on the reference) or "reference"; by default the
            first that serves x's device and dtype. See `mambabyte.ops.backends`.

    Returns:
        out (B, L, D) in x's dtype, and with `return_final_state` the last W-1 inputs (B, W-1, D), with
        gradients. Inputs before the last document's start are zero in it.

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot serve these tensors.
    """
    bias = x.new_zeros(x.shape[-1]) if bias is None else bias
    _check_shapes(x, weight, bias, initial_state)
    backend = choose_backend("causal_conv1d", x.device, x.dtype, backend, width=weight.shape[1])
    if backend != "reference":
        inputs = ConvInputs(x, weight, bias, initial_state, document_start)
        out, state = causal_conv1d_fused(backend, inputs, return_final_state)
        return out if state is None else (out, state)
    out = causal_conv1d_reference(x, weight, bias, initial_state, document_start)
    if not return_final_state:
        return out
    return out, last_inputs(x, initial_state, weight.shape[1] - 1, document_start)


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None) -> None:
    channels_agree = weight.shape[:1] == bias.shape == x.shape[2:]
    if (x.dim(), weight.dim()) != (3, 2) or 0 in x.shape or not channels_agree:
        raise ValueError(
            "x (B, L, D), weight (D, W) and bias (D) do not fit: "
            f"{tuple(x.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)}"
        )
    state_shape = (x.shape[0], weight.shape[1] - 1, x.shape[2])
    if initial_state is not None and tuple(initial_state.shape) != state_shape:
        raise ValueError(f"initial_state must have shape {state_shape}, not {tuple(initial_state.shape)}")
