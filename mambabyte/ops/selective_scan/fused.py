"""The fused scans as PyTorch operators, so that autograd, torch.compile, autocast and fake tensors know them.

A fused backend is a module of this package (cpu, triton, mamba_ssm) that offers

    forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, document_start, keep_states)
        -> out, final state, states
    backward(grad_out, grad_final_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, document_start,
             states)
        -> the gradients of u, delta, A, B, C, D, z, delta_bias (None where absent) and of the initial state
    states_shape(u, A)

where `states` is what its backward pass starts from: the states between chunks, empty without `keep_states`.
`grad_final_state` is None where nothing depends on the final state.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mambabyte.ops.operators import operator


@functools.cache
def _backend(name: str) -> Any:
    return import_module(f"mambabyte.ops.selective_scan.{name}")


def selective_scan_fused(
    backend: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    document_start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `mambabyte.ops.selective_scan`; returns the output and the final state."""
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, document_start)
    differentiable = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in arguments
    )
    out, state, _ = _forward(*arguments, differentiable, backend)
    return out, state


@operator("mambabyte::selective_scan")
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    document_start: Tensor | None,
    keep_states: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backend(backend).forward(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, document_start, keep_states
    )


@_forward.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, initial_state: Tensor | None,
    document_start: Tensor | None, keep_states: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    states = _backend(backend).states_shape(u, A) if keep_states else (0,)
    final_state = u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)
    return u.new_empty(u.shape), final_state, final_state.new_empty(states)


@operator("mambabyte::selective_scan_backward")
def _backward(
    grad_out: Tensor,
    grad_final_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    document_start: Tensor | None,
    states: Tensor,
    backend: str,
) -> list[Tensor]:
    gradients = _backend(backend).backward(
        grad_out,
        grad_final_state,
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        document_start,
        states,
    )
    return [u.new_empty(0) if gradient is None else gradient for gradient in gradients]


@_backward.register_fake
def _(
    grad_out: Tensor, grad_final_state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor,
    C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    document_start: Tensor | None, states: Tensor, backend: str,
) -> list[Tensor]:  # fmt: skip
    arguments = (u, delta, A, B, C, D, z, delta_bias)
    gradients = [u.new_empty(0) if x is None else x.new_empty(x.shape) for x in arguments]
    return [*gradients, u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, delta_softplus, initial_state, document_start, _, backend = inputs
    states = output[2]
    ctx.save_for_backward(*tensors, document_start, states)
    ctx.set_materialize_grads(False)
    ctx.delta_softplus, ctx.backend = delta_softplus, backend
    ctx.initial = None if initial_state is None else initial_state.dtype


def _differentiate(
    ctx: Any, grad_out: Tensor | None, grad_final_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, document_start, states = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    gradients = _backward(
        grad_out, grad_final_state, *tensors, ctx.delta_softplus, document_start, states, ctx.backend
    )
    present = [g if x is not None else None for g, x in zip(gradients, tensors, strict=False)]
    grad_initial_state = None if ctx.initial is None else gradients[-1].to(ctx.initial)
    return (*present, None, grad_initial_state, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
