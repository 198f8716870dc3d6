"""Callbacks that look at a run from inside, to be named by callbacks.extra."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from mambabyte.models import MambaByte
from mambabyte.training.module import ByteLMModule


class Operators(TorchDispatchMode):
    """Counts the collective operations, and the numbers that the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition(".")[0]
        if name.startswith(("c10d::", "_c10d_functional::")) or name == "aten::_local_scalar_dense":
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


class InSteps(Callback):
    """Writes what Operators counts in the micro-batches of two steps, from the end of the one before, and the
    bytes of the storages of all gradients within the first of them."""

    def __init__(self, path: str, first: int) -> None:
        self.path, self.steps = Path(path), (first, first + 1)
        self.operators: Operators | None = None
        self.gradients: set[int] = set()

    def on_train_batch_end(self, trainer: Any, module: ByteLMModule, *unused: Any) -> None:
        if trainer.global_step == self.steps[0] and self.operators is None:
            self.operators = Operators()
            self.operators.__enter__()
        if trainer.global_step in self.steps and self.operators is not None:
            gradients = [p.grad for p in module.model.parameters() if not isinstance(p, DTensor)]
            storages = [gradient.untyped_storage() for gradient in gradients]
            self.gradients.add(sum({each.data_ptr(): each.nbytes() for each in storages}.values()))
        if trainer.global_step == self.steps[1] + 1 and self.operators is not None:
            self.operators.__exit__(None, None, None)
            parameters = 4 * module.model.num_parameters()
            found = {
                "counts": self.operators.counts,
                "gradients": [*self.gradients],
                "parameters": parameters,
            }
            self.operators = None
            if trainer.is_global_zero:
                self.path.write_text(json.dumps(found))


class GatheredTypes(Callback):
    """Writes the dtypes that the first block's weights have in its forward pass."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_start(self, trainer: Any, module: ByteLMModule) -> None:
        block = module.model.blocks()[0]

        def note(mixer: torch.nn.Module, *unused: Any) -> None:
            found = {name: str(parameter.dtype) for name, parameter in block.named_parameters()}
            if trainer.is_global_zero:
                self.path.write_text(json.dumps(found))

        # where the matrices are there: between the first and the last of them
        block.mixer.x_proj.register_forward_hook(note)


class InFp32(Callback):
    """Lets FSDP gather all weights in fp32."""

    def setup(self, trainer: Any, module: ByteLMModule, stage: str) -> None:
        MambaByte.matrices = lambda model, block: []
