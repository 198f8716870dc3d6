"""Tensors that the backward pass computes again from their inputs, instead of keeping them.

    x = recomputable(f(a, b), f, a, b)   is f(a, b)
    save(ctx, x, ...), saved(ctx)        of an autograd.Function, in the place of PyTorch's own

An operator that saves such an x keeps a and b, and its backward pass calls f again, once for all operators
that saved x. Inputs are saved in PyTorch's way, so activation checkpointing, offloading and the check for
changes in place see them. Whatever else saves x, such as a module of somebody else's, keeps x itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Where memory is scarce and one more pass over a tensor costs little.
DEVICES = {"cuda"}


class _Recipe:
    def __init__(self, function: Callable[..., Tensor], count: int, version: int) -> None:
        self.function = function
        self.count = count  # of the function's inputs
        self.version = version  # the tensor's, before any change in place
        self.uses = 0  # operators that have saved the tensor
        self._left = 0  # those of them that have not had it in this backward pass
        self._result: Tensor | None = None

    def result(self, inputs: list[Tensor | None]) -> Tensor:
        if self._result is None:
            device = next(x.device.type for x in inputs if x is not None)
            # The inputs have been cast already where forward did so.
            with torch.no_grad(), torch.autocast(device, enabled=False):
                self._result, self._left = self.function(*inputs), self.uses
        result, self._left = self._result, self._left - 1
        if self._left == 0:
            self._result = None
        return result


def recomputable(x: Tensor, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """x, which is function(*inputs), and which backward computes again where its device is one of `DEVICES`.

    Args:
        function: gives x's bits each time, also without gradients and autocast. It holds no tensors.
    """
    if x.device.type in DEVICES and x.requires_grad and not torch.compiler.is_compiling():
        recipe = _Recipe(function, len(inputs), x._version)
        x._recipe_and_inputs = recipe, inputs  # type: ignore[attr-defined]
    return x


def recomputable_as(x: Tensor, view: Tensor) -> Tensor:
    """`view`, all of x, with x's way to compute it again."""
    if hasattr(x, "_recipe_and_inputs"):
        view._recipe_and_inputs = x._recipe_and_inputs  # type: ignore[attr-defined]
    return view


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """As `ctx.save_for_backward`."""
    kept: list[Tensor | None] = []
    ctx.recipes = []
    for tensor in tensors:
        recipe, inputs = getattr(tensor, "_recipe_and_inputs", (None, ()))
        if recipe is not None and tensor is not None and recipe.version == tensor._version:
            recipe.uses += 1
            kept += inputs
        else:
            recipe = None
            kept.append(tensor)
        ctx.recipes.append(recipe)
    ctx.save_for_backward(*kept)


def saved(ctx: Any) -> list[Any]:
    """As `ctx.saved_tensors`, to be read once in a backward pass."""
    kept = iter(ctx.saved_tensors)
    return [
        next(kept) if recipe is None else recipe.result([next(kept) for _ in range(recipe.count)])
        for recipe in ctx.recipes
    ]
