"""A model from its config and stored weights, whose memory it takes over: nothing is copied or drawn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mambabyte.models import ByteLM, ByteLMConfig
from mambabyte.models.meta_device import on_meta_device


def shapes(config: ByteLMConfig) -> dict[str, torch.Size]:
    """The names and shapes of the state dict that one of our models with this config has."""
    return _shapes(_on_meta(config).state_dict())


def model_of(config: ByteLMConfig, weights: Mapping[str, Tensor]) -> ByteLM:
    """One of our models around the ``weights`` that ``config`` describes, in float32 or float64.

    Those that have that type already stay where they are, mapped files included; others are converted.

    Raises:
        ValueError: the weights have other names or shapes, less memory than their shapes say, or two values
            for one that the model shares. Nothing of their size has been allocated then.
    """
    layers = max(getattr(config, name, 0) for name in ("n_layer", "local_n_layer"))
    if layers > len(weights):
        raise ValueError(f"{layers} layers, and {len(weights)} tensors")
    model = _on_meta(config)
    if _shapes(model.state_dict()) != _shapes(weights):
        raise ValueError("other names or shapes")
    for name, weight in weights.items():
        if (
            weight.layout != torch.strided
            or weight.is_meta  # a tensor without data
            or weight.numel() * weight.itemsize > weight.untyped_storage().nbytes()
        ):
            raise ValueError(f"{name} has less memory than its shape says")
    adopted: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            weight = weights[f"{prefix}.{name}" if prefix else name].detach()
            if id(parameter) not in adopted:
                wide = weight.to(torch.promote_types(weight.dtype, parameter.dtype)).contiguous()
                new = nn.Parameter(wide, parameter.requires_grad)
                new.__dict__.update(parameter.__dict__)  # marks such as _no_weight_decay
                adopted[id(parameter)] = new, weight
            elif not same_bits(adopted[id(parameter)][1], weight):
                raise ValueError(f"{prefix}.{name} is shared, and has two values")
            module._parameters[name] = adopted[id(parameter)][0]
    return model


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaNs included."""
    a, b = a.detach().contiguous(), b.detach().contiguous()
    same_kind = a.shape == b.shape and a.dtype == b.dtype
    return same_kind and (
        a.data_ptr() == b.data_ptr() or torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    )


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items() if isinstance(tensor, Tensor)}


def _on_meta(config: ByteLMConfig) -> ByteLM:
    with on_meta_device():
        return config.build()
