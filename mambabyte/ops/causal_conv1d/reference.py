"""The causal convolution in plain PyTorch: the definition that every other backend must match."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def causal_conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None, document_start: Tensor | None
) -> Tensor:
    """As `mambabyte.ops.causal_conv1d`, in fp32 (fp64 if x is); the output in x's dtype."""
    return silu(causal_sum(x, weight, bias, initial_state, document_start)).to(x.dtype)


def causal_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None,
    document_start: Tensor | None,
) -> Tensor:  # fmt: skip
    """The convolution without SiLU, in fp32 (fp64 if x is)."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    history, length = weight.shape[1] - 1, x.shape[1]
    padded = _with_history(x.to(dtype), initial_state, history)
    age = None if document_start is None else _age(document_start, history)
    total = x.new_zeros((), dtype=dtype) if bias is None else bias.to(dtype)
    for back in range(history + 1):
        tap = padded[:, history - back : history - back + length] * weight[:, history - back].to(dtype)
        total = total + (tap if age is None else tap.masked_fill((age < back).unsqueeze(-1), 0.0))
    return total


def last_inputs(
    x: Tensor, initial_state: Tensor | None, history: int, document_start: Tensor | None
) -> Tensor:
    """The state after x: its last `history` inputs (B, history, D), zero before the last document's start."""
    inputs = _with_history(x[:, -history:] if history else x[:, :0], initial_state, history)
    return same_document(inputs[:, inputs.shape[1] - history :], document_start)


def same_document(last: Tensor, document_start: Tensor | None) -> Tensor:
    """Rows (B, history, D) of the last inputs, zero before the last document's start."""
    history = last.shape[1]
    if document_start is None or history == 0:
        return last
    steps_back = torch.arange(history - 1, -1, -1, device=last.device)  # of each kept row, from the last step
    return last.masked_fill((steps_back > _age(document_start, history)[:, -1:]).unsqueeze(-1), 0.0)


def _with_history(x: Tensor, initial_state: Tensor | None, history: int) -> Tensor:
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], history, x.shape[2])
    return torch.cat([initial_state.to(x.dtype), x], dim=1)


def _age(document_start: Tensor, history: int) -> Tensor:
    """(B, L): steps since the document began, at most `history`. Inputs before the window belong to its first
    document unless a mark says otherwise."""
    age = torch.full_like(document_start, history, dtype=torch.int64)
    for back in reversed(range(min(history, document_start.shape[1]))):
        started = torch.zeros_like(document_start)
        started[:, back:] = document_start[:, : document_start.shape[1] - back]
        age = age.masked_fill(started, back)
    return age
