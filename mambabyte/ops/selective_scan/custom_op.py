"""The fused scans as PyTorch operators, which autograd, torch.compile, autocast and fake tensors understand.

A fused backend is a module of this package (cpu, cuda, triton, mamba_ssm) with three functions:

    forward(inputs, keep_states) -> out, final state, states
    backward(grad_out, grad_final_state, inputs, states)
        -> the gradients of u, delta, A, B, C, D, z, delta_bias (None where absent) and of the initial state
    states_shape(u, A)

and, if there are calls that it cannot serve, a fourth, which gives the reason, or None (see
`mambabyte.ops.backends`):

    cannot_serve(dtype=, states=, initial_state=, document_start=)

One with STRIDED_GRAD_Z = True also takes a tensor `grad_z` to write that gradient to, whose rows may be some
way apart.

`inputs` is a `ScanInputs`. `states` is what the backward pass starts from: the states between chunks, or an
empty tensor without `keep_states`. `grad_final_state` is None where nothing depends on the final state; the
backward pass gets `inputs` without the initial state, which `states` contains.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mambabyte.ops.halves import gradient_place
from mambabyte.ops.operators import operator
from mambabyte.ops.recomputation import save, saved
from mambabyte.ops.selective_scan.reference import ScanInputs


@functools.cache
def _backend(name: str) -> Any:
    return import_module(f"mambabyte.ops.selective_scan.{name}")


def selective_scan_fused(backend: str, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Scan on a fused backend; return the output and the final state."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    out, state, _ = _forward(*inputs, differentiable, backend)
    return out, state


# PyTorch infers an operator's schema from its signature, so these two spell their arguments out.
@operator("mambabyte::selective_scan")
def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, initial_state: Tensor | None,
    document_start: Tensor | None, keep_states: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, document_start)
    return _backend(backend).forward(inputs, keep_states)


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, _, A, *_, keep_states, backend = arguments
    states = _backend(backend).states_shape(u, A) if keep_states else (0,)
    final_state = u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)
    return u.new_empty(u.shape), final_state, final_state.new_empty(states)


# It writes to `grad_z`, which its schema does not say: whatever reads schemas gets none to write to.
@operator("mambabyte::selective_scan_backward")
def _backward(
    grad_out: Tensor, grad_final_state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor,
    C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    document_start: Tensor | None, states: Tensor, grad_z: Tensor | None, backend: str,
) -> list[Tensor]:  # fmt: skip
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, None, document_start)
    place = {} if grad_z is None else {"grad_z": grad_z}
    gradients = list(_backend(backend).backward(grad_out, grad_final_state, inputs, states, **place))
    if grad_z is not None:
        gradients[6] = None
    return [u.new_empty(0) if gradient is None else gradient for gradient in gradients]


@_backward.register_fake
def _(grad_out: Tensor, grad_final_state: Tensor | None, *arguments: Any) -> list[Tensor]:
    u, _, A, *_ = arguments
    grad_z = arguments[-2]
    tensors = [*arguments[:6], arguments[6] if grad_z is None else None, arguments[7]]
    gradients = [u.new_empty(0) if x is None else x.new_empty(x.shape) for x in tensors]
    return [*gradients, u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, delta_softplus, initial_state, document_start, _, backend = inputs
    save(ctx, *tensors, document_start, output[2])
    ctx.set_materialize_grads(False)
    ctx.delta_softplus, ctx.backend = delta_softplus, backend
    strided = getattr(_backend(backend), "STRIDED_GRAD_Z", False)
    ctx.place_of_z = gradient_place(tensors[6]) if strided else None
    ctx.initial_state_dtype = None if initial_state is None else initial_state.dtype


def _differentiate(
    ctx: Any, grad_out: Tensor | None, grad_final_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, document_start, states = saved(ctx)
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    grad_z = None if ctx.place_of_z is None else ctx.place_of_z.begin(tensors[6])
    *gradients, grad_state = _backward(
        grad_out, grad_final_state, *tensors, ctx.delta_softplus, document_start, states, grad_z, ctx.backend
    )
    if grad_z is not None:
        gradients[6] = grad_z
    present = [None if x is None else gradient for x, gradient in zip(tensors, gradients, strict=True)]
    dtype = ctx.initial_state_dtype
    return (*present, None, None if dtype is None else grad_state.to(dtype), None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
