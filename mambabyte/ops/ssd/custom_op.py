"""The fused state space duals as PyTorch operators: see `mambabyte.ops.operators`.

A fused backend is a module of this package (cpu, triton) with three functions:

    forward(inputs, keep_states) -> out in x's dtype, the final state in fp32, states
    backward(grad_out, grad_final_state, inputs, states)
        -> the gradients of x, log_decay (None without it), B and C in their dtypes, and of the initial state
           in fp32
    states_shape(x, B)

and, if there are calls that it cannot serve, a fourth, which gives the reason, or None (see
`mambabyte.ops.backends`):

    cannot_serve(dtype=, channels=, states=)

`inputs` is an `SSDInputs`. `states` (fp32) is what the backward pass starts from: the states between chunks,
or an empty tensor without `keep_states`. `grad_final_state` is None where nothing depends on the final state;
the backward pass gets `inputs` without the initial state, which `states` contains.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mambabyte.ops.operators import operator
from mambabyte.ops.recomputation import save, saved
from mambabyte.ops.ssd.reference import SSDInputs


@functools.cache
def _backend(name: str) -> Any:
    return import_module(f"mambabyte.ops.ssd.{name}")


def ssd_fused(backend: str, inputs: SSDInputs) -> tuple[Tensor, Tensor]:
    """The state space dual on a fused backend; return the output and the final state."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    out, state, _ = _forward(*inputs, differentiable, backend)
    return out, state


# PyTorch infers an operator's schema from its signature, so these two spell their arguments out.
@operator("mambabyte::ssd")
def _forward(
    x: Tensor, log_decay: Tensor | None, B: Tensor, C: Tensor, initial_state: Tensor | None,
    document_start: Tensor | None, keep_states: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = SSDInputs(x, log_decay, B, C, initial_state, document_start)
    return _backend(backend).forward(inputs, keep_states)


@_forward.register_fake
def _(x: Tensor, log_decay: Tensor | None, B: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, keep_states, backend = arguments
    states = _backend(backend).states_shape(x, B) if keep_states else (0,)
    final_state = x.new_empty(_state_shape(x, B), dtype=torch.float32)
    return x.new_empty(x.shape), final_state, final_state.new_empty(states)


@operator("mambabyte::ssd_backward")
def _backward(
    grad_out: Tensor, grad_final_state: Tensor | None, x: Tensor, log_decay: Tensor | None, B: Tensor,
    C: Tensor, document_start: Tensor | None, states: Tensor, backend: str,
) -> list[Tensor]:  # fmt: skip
    inputs = SSDInputs(x, log_decay, B, C, None, document_start)
    gradients = _backend(backend).backward(grad_out, grad_final_state, inputs, states)
    return [x.new_empty(0) if gradient is None else gradient for gradient in gradients]


@_backward.register_fake
def _(
    grad_out: Tensor, grad_final_state: Tensor | None, x: Tensor, log_decay: Tensor | None, B: Tensor,
    C: Tensor, *_: Any,
) -> list[Tensor]:  # fmt: skip
    inputs = (x, log_decay, B, C)
    gradients = [x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in inputs]
    return [*gradients, x.new_empty(_state_shape(x, B), dtype=torch.float32)]


def _state_shape(x: Tensor, B: Tensor) -> tuple[int, ...]:
    return (x.shape[0], *x.shape[2:], B.shape[3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, log_decay, B, C, initial_state, document_start, _, ctx.backend = inputs
    save(ctx, x, log_decay, B, C, document_start, output[2])
    ctx.set_materialize_grads(False)
    ctx.initial_state_dtype = None if initial_state is None else initial_state.dtype


def _differentiate(
    ctx: Any, grad_out: Tensor | None, grad_final_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, log_decay, *others = saved(ctx)
    if grad_out is None:
        grad_out = torch.zeros_like(x)
    grad_x, grad_decay, grad_B, grad_C, grad_state = _backward(
        grad_out, grad_final_state, x, log_decay, *others, ctx.backend
    )
    dtype = ctx.initial_state_dtype
    return (
        grad_x, None if log_decay is None else grad_decay, grad_B, grad_C,
        None if dtype is None else grad_state.to(dtype), None, None, None,
    )  # fmt: skip


_forward.register_autograd(_differentiate, setup_context=_save)
