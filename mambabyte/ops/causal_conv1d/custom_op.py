"""The fused convolutions as PyTorch operators: see `mambabyte.ops.operators`.

A fused backend is a module of this package (cpu, triton) with three functions:

    cannot_serve(dtype=, width=) -> the one below
    forward(inputs, return_final_state) -> out, the final state or None
    backward(grad_out, grad_final_state, inputs, wanted)
        -> the gradients of x, weight, bias in their dtypes, and of the initial state in fp32 or None

`wanted` is where to write the gradient of x, whose rows may be some way apart, or None for a new tensor.
`inputs` is a `ConvInputs`. `grad_final_state` is None where nothing depends on the final state.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambabyte.ops.halves import gradient_place
from mambabyte.ops.operators import operator

WIDTHS = (2, 3, 4)  # those that Mamba models have, and that the kernels are compiled for


class ConvInputs(NamedTuple):
    """What `mambabyte.ops.causal_conv1d` convolves, with the shapes given there, in the operators' order."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    initial_state: Tensor | None
    document_start: Tensor | None


def cannot_serve(*, width: int, **_: Any) -> str | None:
    """Why the fused backends cannot convolve with a kernel of this width, or None."""
    return None if width in WIDTHS else f"it takes widths of {', '.join(map(str, WIDTHS))}, not {width}"


@functools.cache
def _backend(name: str) -> Any:
    return import_module(f"mambabyte.ops.causal_conv1d.{name}")


def causal_conv1d_fused(
    backend: str, inputs: ConvInputs, return_final_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Convolve on a fused backend; return the output and, if it is wanted, the final state."""
    out, state = _forward(*inputs, return_final_state, backend)
    return out, state if return_final_state else None


# PyTorch infers an operator's schema from its signature, so these two spell their arguments out.
@operator("mambabyte::causal_conv1d")
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None, document_start: Tensor | None,
    return_final_state: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    inputs = ConvInputs(x, weight, bias, initial_state, document_start)
    out, state = _backend(backend).forward(inputs, return_final_state)
    return out, x.new_empty(0) if state is None else state


@_forward.register_fake
def _(x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return_final_state = arguments[-2]
    state = (x.shape[0], weight.shape[1] - 1, x.shape[2]) if return_final_state else (0,)
    return x.new_empty(x.shape), x.new_empty(state)


# It writes to `wanted`, which its schema does not say: whatever reads schemas gets none to write to.
@operator("mambabyte::causal_conv1d_backward")
def _backward(
    grad_out: Tensor, grad_final_state: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor,
    initial_state: Tensor | None, document_start: Tensor | None, wanted: Tensor | None, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = ConvInputs(x, weight, bias, initial_state, document_start)
    grad_x, *gradients, grad_state = _backend(backend).backward(grad_out, grad_final_state, inputs, wanted)
    grad_x = grad_x if wanted is None else x.new_empty(0)
    return grad_x, *gradients, weight.new_empty(0, dtype=torch.float32) if grad_state is None else grad_state


@_backward.register_fake
def _(
    grad_out: Tensor, grad_final_state: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor,
    initial_state: Tensor | None, _: Tensor | None, wanted: Tensor | None, __: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    state = (0,) if initial_state is None else initial_state.shape
    return (
        x.new_empty(x.shape if wanted is None else (0,)),
        weight.new_empty(weight.shape),
        bias.new_empty(bias.shape),
        x.new_empty(state, dtype=torch.float32),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.return_final_state, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.place_of_x = gradient_place(tensors[0])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, grad_out: Tensor | None, grad_final_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing lets each be unpacked once
    if grad_out is None:
        grad_out = torch.zeros_like(saved[0])
    if not ctx.return_final_state:
        grad_final_state = None
    wanted = None if ctx.place_of_x is None else ctx.place_of_x.join()
    *gradients, grad_state = _backward(grad_out, grad_final_state, *saved, wanted, ctx.backend)
    if wanted is not None:
        gradients[0] = wanted
    initial_state = saved[3]
    grad_state = None if initial_state is None else grad_state.to(initial_state.dtype)
    return *gradients, grad_state, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
