"""Kernels as PyTorch operators, with a short way in for eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_PLAIN = (Tensor, nn.Parameter)


class Operator:
    """A function of tensors that torch.library knows: torch.compile, fake tensors and opcheck go through it.

    A call through torch.library costs more than a small kernel does, so plain tensors in eager mode reach the
    function itself, with the same formulas for autograd. `register_fake` and `register_autograd` are those of
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

        members = {
            "forward": staticmethod(forward),
            "backward": staticmethod(once_differentiable(differentiate)),
        }
        self._differentiable = type(function.__name__, (torch.autograd.Function,), members)

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_plain(arguments):
            return self._operator(*arguments)
        if self._differentiable is not None and torch.is_grad_enabled():
            return self._differentiable.apply(*arguments)
        return self._function(*arguments)


def _is_plain(arguments: tuple[Any, ...]) -> bool:
    if torch._C._are_functorch_transforms_active():
        return False
    return all(type(x) in _PLAIN for x in arguments if isinstance(x, Tensor))


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorates a function of tensors that changes none of its arguments, in the manner of
    `torch.library.custom_op`."""
    return lambda function: Operator(name, function)
