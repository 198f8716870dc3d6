"""Low-rank adapters (LoRA, arXiv 2106.09685): peft's own layers in our models.

A linear layer x W^T becomes x W^T + alpha / rank (x A^T) B^T, with A (rank, in) and B (out, rank). Only A and
B are trained; B begins as zero. What reads a layer's weight itself must ask `weight_of`, since the attribute
`weight` of peft's layers is W alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mambabyte.errors import UserError
from mambabyte.models.hyperparameters import LoraSettings

if TYPE_CHECKING:
    from peft import LoraConfig

# In the names of an adapted model's state dict.
_BASE = ".base_layer."
_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(model: nn.Module, lora: LoraSettings) -> None:
    """Give the target layers adapters, and let these alone be trained. The outputs do not change.

    Raises:
        UserError: peft is missing, or the model has no such layer.
    """
    layers = adapted_layers(model, lora)
    config = peft_config(lora)
    config.target_modules = layers
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model)
    for layer in map(model.get_submodule, layers):  # each learns at the rate of the weight that it is beside
        marks = layer.get_base_layer().weight.__dict__  # type: ignore[operator]
        for adapters in (layer.lora_A, layer.lora_B):
            for adapter in adapters.values():  # type: ignore[operator]
                adapter.weight.__dict__.update(marks)


def adapted_layers(model: nn.Module, lora: LoraSettings) -> list[str]:
    """The names of the layers that get adapters.

    Raises:
        UserError: the model lacks one that is named, or the rank is above that of all of them.
    """
    layers = _linear_layers(model)
    for target in lora.targets:
        if not any(_is_named(name, target) for name in layers):
            ends = {name.rpartition(".")[2] for name in layers}
            raise UserError(
                f"lora.targets: this model has no linear layer {target!r}"
                + (
                    f"; set lora.targets to some of {', '.join(sorted(ends))}"
                    if ends
                    else ", and no other that adapters could be put beside"
                )
            )
    adapted = [name for name in layers if any(_is_named(name, target) for target in lora.targets)]
    shapes = [model.get_parameter(f"{name}.weight").shape for name in adapted]
    most = max(map(min, shapes))
    if lora.rank > most:
        raise UserError(
            f"lora.rank={lora.rank} is above the rank of every layer of lora.targets, {most} at most: lower "
            "it, or train the weights themselves with lora=none"
        )
    return adapted


def peft_config(lora: LoraSettings, base: str | None = None) -> LoraConfig:
    """What peft calls these settings.

    Args:
        base: the name of the adapted model, if others know it.

    Raises:
        UserError: peft is missing.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError("adapters need peft, which is missing: pip install 'mambabyte[lora]'") from error
    return LoraConfig(
        base_model_name_or_path=base,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # it only divides it
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
    )


def is_adapted(model: nn.Module) -> bool:
    """Whether one of its layers is peft's."""
    return any(hasattr(module, "get_base_layer") for module in model.modules())


def weight_of(layer: Any) -> Tensor:
    """The weight (out, in) that a linear layer computes with: its own, or of an adapted one a new tensor."""
    if not hasattr(layer, "get_base_layer"):
        return layer.weight
    if not (layer.merged or layer.disable_adapters):
        layer = copy.deepcopy(layer)
        layer.merge()
    return layer.get_base_layer().weight.detach().clone()


def load_base(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the state dict of a model without adapters into one that has them."""
    model.load_state_dict(
        {name: weights.get(name.replace(_BASE, "."), own) for name, own in model.state_dict().items()}
    )


def merged(weights: Mapping[str, Tensor], lora: LoraSettings) -> dict[str, Tensor]:
    """The state dict of an adapted model as that of a model without adapters: W + alpha / rank B A.

    Raises:
        ValueError: an adapter does not fit its layer. Nothing of the layer's size has been allocated then.
    """
    left, whole = dict(weights), {}
    for name, tensor in weights.items():
        layer, adapted, parameter = name.partition(_BASE)
        if adapted and parameter == "weight":
            A, B = (left.pop(layer + end, torch.empty(0)) for end in (_A, _B))
            _check(tensor, A, B, lora.rank)
            tensor = tensor + (B @ A) * (lora.alpha / lora.rank)
        if not name.endswith((_A, _B)):
            whole[f"{layer}.{parameter}" if adapted else name] = tensor
            del left[name]
    if left:
        raise ValueError(f"adapters of no layer: {', '.join(left)}")
    return whole


def without_adapters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the model that was adapted, as it was."""
    return {
        name.replace(_BASE, "."): tensor for name, tensor in weights.items() if not name.endswith((_A, _B))
    }


def adapters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters in a state dict, by the names that peft's files give them."""
    return {
        f"base_model.model.{name.replace('.default.', '.')}": tensor.contiguous()
        for name, tensor in weights.items()
        if name.endswith((_A, _B))
    }


def _check(weight: Any, A: Any, B: Any, rank: int) -> None:
    for tensor in (weight, A, B):
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.ndim != 2:
            raise ValueError("a matrix is missing")
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != weight.dtype:
            raise ValueError("an adapter of another type than its layer's")
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError("less memory than the shape says")
    if A.shape != (rank, weight.shape[1]) or B.shape != (weight.shape[0], rank):
        raise ValueError("an adapter of another shape than its layer's")


def _linear_layers(model: nn.Module) -> list[str]:
    """Their names, without those that share their weight, such as a tied head."""
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and uses[id(module.weight)] == 1
    ]


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
