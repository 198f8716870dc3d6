"""A training step never waits for the device. Here PyTorch's "meta" stands for one, whose tensors have shapes
but no data, and every operator passes a mode that knows what a host would wait for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import adam
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mambabyte.models.hnet import Stage
from mambabyte.models.spacebyte import SpaceByte
from mambabyte.ops import recomputation
from mambabyte.training.module import ByteLMModule
from mambabyte.training.readback import AnyRank
from mambabyte.training.settings import TrainSettings
from tests.models.every_model import MODELS

DEVICE = torch.device("meta")
# the value or the shape of their result depends on data, which the host has to read
READ = {
    *("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2"),
    *("bincount", "repeat_interleave", "unique_consecutive", "unique_dim"),
}


class Waits(TorchDispatchMode):
    """Notes the operators for which a host would wait: those that read, and copies between the host and the
    device that do not say that nobody waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operators = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.name().removeprefix("aten::").partition(".")[0]
        self.operators += 1
        if name in READ:
            self.found.append(name)
        if name == "index" and any(
            x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None
        ):  # looks for the places of the true ones
            self.found.append("index by a mask")
        if name in ("_to_copy", "copy_", "_pin_memory"):
            devices = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            devices |= {torch.device(d).type for d in [kwargs.get("device")] if d is not None}
            quiet = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if len(devices) > 1 and not quiet:
                self.found.append(f"{name} between {' and '.join(sorted(devices))}")
            if (
                name == "_to_copy"
                and args[0].is_meta
                and torch.device(kwargs.get("device", DEVICE)) != DEVICE
            ):
                return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return function(*args, **kwargs)


class Constructors(TorchFunctionMode):
    """Adds to them the tensors made from Python's numbers, whose copy passes no operator."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.found = waits.found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            function in (torch.tensor, torch.as_tensor)
            and torch.device(kwargs.get("device") or "cpu") == DEVICE
        ):
            self.found.append(function.__name__)
        return function(*args, **kwargs)


@contextmanager
def watched() -> Iterator[Waits]:
    with Waits() as waits, Constructors(waits):
        yield waits


@pytest.fixture
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda parameter: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=None: False)  # meta has no autocast
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())


def on_the_device(model: torch.nn.Module) -> None:
    """Move its parameters there; shared ones stay shared."""
    made: dict[torch.Tensor, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    made[parameter] = torch.nn.Parameter(torch.empty_like(parameter, device=DEVICE))
                    made[parameter].__dict__.update(parameter.__dict__)
                module._parameters[name] = made[parameter]


def batch_of(module: ByteLMModule, length: int) -> dict[str, Any]:
    """Packed windows, as Lightning's hooks give them to a step: the marks pass the module's own hook."""
    marks = np.zeros((2, length), dtype=bool)
    marks[0, [3, 20]] = marks[1, 9] = True
    host = {"document_start": torch.from_numpy(marks)}
    given = module.on_before_batch_transfer(host, 0)
    if isinstance(given["document_start"], torch.Tensor):
        given["document_start"] = torch.empty(marks.shape, dtype=torch.bool, device=DEVICE)
    bytes = torch.empty(marks.shape, dtype=torch.uint8, device=DEVICE)
    return {**given, "bytes": bytes, "targets": bytes.to(torch.int16)}


def take_a_step(module: ByteLMModule) -> Waits:
    """What waits in a step of two micro-batches."""
    optimizer = module.configure_optimizers()
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1, global_step=0, optimizers=[optimizer], strategy=SimpleNamespace(root_device=DEVICE)
    )
    module._device = DEVICE
    module.on_train_start()
    batches = [batch_of(module, 33) for _ in range(2)]
    with watched() as waits:
        for batch in batches:
            module.training_step(batch, 0).backward()
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        AnyRank().says(SimpleNamespace(world_size=2, strategy=module.trainer.strategy), 1, mine=False)
        module.optimizer_zero_grad(0, 0, optimizer)
    return waits


@pytest.fixture
def module_of(no_gpu_needed: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recomputation, "DEVICES", {DEVICE.type})  # as on CUDA
    # of SpaceByte the host reads how many patches a window has, and nothing else
    monkeypatch.setattr(SpaceByte, "_longest", lambda model, counts, length: length // 2)

    def module_of(name: str) -> ByteLMModule:
        settings = TrainSettings.compose("experiment=tiny", "trainer.spike_threshold=6")
        module = ByteLMModule(replace(settings, model=MODELS[name]), {})
        return module

    return module_of


@pytest.mark.parametrize("name", MODELS)
def test_no_model_waits_in_a_step(name: str, module_of, monkeypatch: pytest.MonkeyPatch) -> None:
    # of H-Net the host reads how many chunks there are, once in each stage, and nothing else
    monkeypatch.setattr(Stage, "_most", lambda stage, counts, length: math.ceil(length / stage.ratio))
    module = module_of(name)
    on_the_device(module.model)
    waits = take_a_step(module)
    assert waits.found == []
    assert waits.operators > 100


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x.copy_(torch.zeros(3)),
    ],
    ids=["item", "bool", "nonzero", "mask", "cpu", "tolist", "tensor", "copy_"],
)
def test_the_trap_catches(wait) -> None:
    x = torch.empty(3, device=DEVICE)
    with watched() as waits, suppress(RuntimeError, NotImplementedError):  # there is no data to read
        wait(x)
    assert waits.found
    with watched() as waits:
        torch.full((1,), 2.0, device=DEVICE)
        x.to("cpu", non_blocking=True)
        x.copy_(torch.zeros(3), non_blocking=True)
    assert not waits.found
