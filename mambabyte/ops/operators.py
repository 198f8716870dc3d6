"""Kernels as PyTorch operators, with a fast path for eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Operator:
    """A function of tensors registered with torch.library, as torch.compile, fake tensors and opcheck need.

    A call through torch.library costs more than a small kernel, so in eager mode plain tensors go straight to
    the function, with the same autograd formulas. `register_fake` and `register_autograd` work as those of
    `torch.library.custom_op`.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._function = function
        self._operator = torch.library.custom_op(name, function, mutates_args=())
        self._differentiable: Any = None
        self.register_fake = self._operator.register_fake

    def register_autograd(self, differentiate: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
        self._operator.register_autograd(differentiate, setup_context=setup_context)
        function = self._function

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function(*inputs)
            setup_context(ctx, inputs, output)
            return output

        backward = once_differentiable(differentiate)
        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._differentiable = type(function.__name__, (torch.autograd.Function,), members)

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_plain(arguments):
            return self._operator(*arguments)
        if self._differentiable is not None and torch.is_grad_enabled():
            return self._differentiable.apply(*arguments)
        return self._function(*arguments)


def _is_plain(arguments: tuple[Any, ...]) -> bool:
    plain = all(type(x) in (Tensor, nn.Parameter) for x in arguments if isinstance(x, Tensor))
    return plain and not torch._C._are_functorch_transforms_active()


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorate a function of tensors that mutates no argument, as `torch.library.custom_op` does."""
    return lambda function: Operator(name, function)
