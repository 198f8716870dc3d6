"""A model from its config and stored weights, whose memory it takes over: nothing is copied or drawn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mambabyte.models import ByteLM, ByteLMConfig


def describes(config: ByteLMConfig, weights: Mapping[str, Tensor]) -> bool:
    """Whether one of our models with this config has these weights' names and shapes, and their storages are
    as large as their shapes say. Nothing of their size is allocated."""
    layers = max(getattr(config, name, 0) for name in ("n_layer", "local_n_layer"))
    if layers > len(weights):
        return False
    described = shapes(config)
    if described != {name: tensor.shape for name, tensor in weights.items() if isinstance(tensor, Tensor)}:
        return False
    return all(
        weight.layout == torch.strided
        and weight.numel() * weight.itemsize <= weight.untyped_storage().nbytes()
        for weight in weights.values()
    )


def shapes(config: ByteLMConfig) -> dict[str, torch.Size]:
    """The names and shapes of the state dict that one of our models with this config has."""
    return {name: tensor.shape for name, tensor in _on_meta(config).state_dict().items()}


def model_of(config: ByteLMConfig, weights: Mapping[str, Tensor]) -> ByteLM:
    """One of our models around the ``weights`` that ``config`` describes, in float32 or float64.

    Those that have that type already stay where they are, mapped files included; others are converted.

    Raises:
        ValueError: weights that the model shares have different values.
    """
    model = _on_meta(config)
    adopted: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            weight = weights[f"{prefix}.{name}" if prefix else name]
            if id(parameter) not in adopted:
                wide = weight.to(torch.promote_types(weight.dtype, parameter.dtype))
                adopted[id(parameter)] = new = nn.Parameter(wide, parameter.requires_grad)
                new.__dict__.update(parameter.__dict__)  # marks such as _no_weight_decay
            elif not torch.equal(adopted[id(parameter)], weight.to(adopted[id(parameter)].dtype)):
                raise ValueError(f"{prefix}.{name} is shared, and has two values")
            module._parameters[name] = adopted[id(parameter)]
    return model


def _on_meta(config: ByteLMConfig) -> ByteLM:
    with torch.device("meta"):
        return config.build()
