"""Models on PyTorch's meta device: modules, names and shapes, without memory or values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Within the context, new tensors are on the meta device, and the functions of torch.nn.init do nothing:
    PyTorch's meta versions of them import its compiler, which takes longer than reading most models."""
    with torch.device("meta"), _WithoutValues():
        yield


class _WithoutValues(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def repeated(make: Callable[[], nn.Module], count: int) -> Iterator[nn.Module]:
    """Modules that differ in the values of their weights alone. On the meta device, where there are none,
    they are copies of the first: making each takes several times as long."""
    first = make()
    yield first
    without_values = all(weight.is_meta for weight in first.parameters())
    for _ in range(count - 1):
        yield _copy(first) if without_values else make()


def _copy(module: nn.Module) -> nn.Module:
    copy = module.__new__(type(module))
    for name, value in module.__dict__.items():
        copy.__dict__[name] = value.copy() if isinstance(value, (dict, set)) else value
    for name, parameter in module._parameters.items():
        if parameter is not None:
            copy._parameters[name] = new = nn.Parameter(parameter.detach(), parameter.requires_grad)
            new.__dict__.update(parameter.__dict__)  # marks such as _no_weight_decay
    for name, child in module._modules.items():
        copy._modules[name] = None if child is None else _copy(child)
    return copy
