"""The arithmetic of a training step in which some weights stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from mambabyte.models.byte_lm import ByteLM
from mambabyte.models.hyperparameters import ByteLMConfig, LoraSettings
from mambabyte.models.lora import adapted_layers
from mambabyte.models.meta_device import on_meta_device
from mambabyte.models.mixer_stack import MixerLayer

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.LSTM)


def training_flops_per_byte(
    config: ByteLMConfig, context_length: int, lora: LoraSettings | None = None, freeze: Sequence[str] = ()
) -> float:
    """Floating-point operations per byte of training, multiply-adds counted as two: `FlopsPerByte.training`
    without the gradients that nobody needs.

    A product with a weight costs once its forward pass for the gradient of a weight that is trained, and once
    for that of its input, unless all that comes before it is frozen. Scans and attention cost twice their
    forward pass in blocks that have something trained in them or before.

    Args:
        lora: the adapters that are trained in the place of all weights; their own products count.
        freeze: shell patterns of the names of weights that are not trained.
    """
    with on_meta_device():
        model = config.build()
    inference = model.flops_per_byte(context_length)
    if lora is None and not freeze:
        return inference.training
    count = _Count(model, lora, freeze)
    for name, module in model.named_modules():
        count.visit(name, module)
    rest = max(0.0, inference.inference - count.products)  # scans and attention
    shares = {block: _share(block, context_length) for block in model.blocks()}
    reached = [block for block in shares if any(id(part) in count.reached for part in block.modules())]
    share = sum(shares[block] for block in reached) / (sum(shares.values()) or 1)
    return inference.inference + count.further + 2 * rest * share


def _share(block: nn.Module, context_length: int) -> float:
    """What a block's scans and attention cost, in any unit: of the blocks of a hybrid stack, which differ,
    what they say; of others one."""
    if not isinstance(block, MixerLayer):
        return 1.0
    weights = [p for m in block.modules() if isinstance(m, _PRODUCTS) for p in m.parameters(recurse=False)]
    return max(0.0, block.flops(context_length) - 2 * sum(p.numel() for p in weights if p.ndim > 1))


class _Count:
    """Visits a model's modules, which are made in the order of their use.

    Attributes:
        products: the operations of the weights' products, in the forward pass.
        further: those of their gradients, and all of the adapters'.
        reached: ids of the modules that come after something trained, or are it.
    """

    def __init__(self, model: ByteLM, lora: LoraSettings | None, freeze: Sequence[str]) -> None:
        self._model, self._rank = model, lora.rank if lora else 0
        self._adapted = set() if lora is None else set(adapted_layers(model, lora))
        weights = model.named_parameters() if lora is None else ()
        self._trained = {
            id(weight) for name, weight in weights if not any(fnmatchcase(name, each) for each in freeze)
        }
        self._below = False  # whether anything before is trained
        self.products = self.further = 0.0
        self.reached: set[int] = set()

    def visit(self, name: str, module: nn.Module) -> None:
        uses = self._model.uses_per_byte(name)
        for parameter in module.parameters(recurse=False):
            trained = id(parameter) in self._trained
            if isinstance(module, _PRODUCTS) and parameter.ndim > 1:
                flops = 2 * parameter.numel() * uses
                self.products += flops
                self._add_gradients(flops, trained)
            self._below |= trained
        if name in self._adapted and isinstance(module, nn.Linear):
            for width in (module.in_features, module.out_features):  # of A, and of B
                flops = 2 * self._rank * width * uses
                self.further += flops
                self._add_gradients(flops, trained=True)
                self._below = True
        if self._below:
            self.reached.add(id(module))

    def _add_gradients(self, flops: float, trained: bool) -> None:
        self.further += flops * (int(trained) + int(self._below))
