"""Lightning's strategies for several devices, with our launcher and checkpoint files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from mambabyte import checkpoints
from mambabyte.training.distributed.launching import Launcher


class DataParallel(DDPStrategy):
    """DDP: every rank holds the whole model; gradients, which lie in the buckets that are sent, are averaged
    once a step."""

    def __init__(self) -> None:
        super().__init__(gradient_as_bucket_view=True)

    def _configure_launcher(self) -> None:
        self._launcher = Launcher(self)


class ShardedDataParallel(ModelParallelStrategy):
    """FSDP: every rank holds a shard of each weight, of its gradient and of its optimizer state.

    With ``sharded_checkpoints`` each rank writes its own shards (checkpoints/sharded.py), otherwise rank 0
    writes whole tensors. Any number of ranks and any strategy can resume from either.
    """

    def __init__(self, processes: int, sharded_checkpoints: bool) -> None:
        super().__init__(processes, 1, save_distributed_checkpoint=False)
        self._sharded_checkpoints = sharded_checkpoints

    def _configure_launcher(self) -> None:
        self._launcher = Launcher(self)

    def model_to_device(self) -> None:
        """Do nothing: sharding has moved the parameters, and moving them would lose their attributes."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self._to_save(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return self._to_save(optimizer.state_dict())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, *_: Any, **__: Any) -> None:
        if self._sharded_checkpoints:
            checkpoints.write_shard(checkpoint, filepath, self.global_rank, self.world_size, self.barrier)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return checkpoints.read(path).content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own, saved = self.lightning_module.state_dict(), checkpoint["state_dict"]
        state = {name: _like(own[name], tensor) if name in own else tensor for name, tensor in saved.items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {
                    name: _like(parameter, value) if value.shape == parameter.shape else value
                    for name, value in saved["state"][number].items()
                }
                for number, parameter in zip(numbers, parameters, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _to_save(self, values: Any) -> Any:
        """``values`` as this rank writes them. Collective unless checkpoints are sharded."""

        def saved(tensor: Tensor) -> Any:
            if not isinstance(tensor, DTensor):
                return tensor
            if self._sharded_checkpoints:
                return {checkpoints.SHARD: tensor.to_local().cpu()}
            whole = tensor.full_tensor()
            return whole.cpu() if self.is_global_zero else None

        return tree_map_only(Tensor, saved, values)


def _like(sharded: Tensor, whole: Tensor) -> Tensor:
    """``whole`` sharded as ``sharded`` is. Every rank has all of ``whole``, so nothing is sent."""
    if not isinstance(sharded, DTensor):
        return whole
    whole = whole.to(sharded.device, copy=True)
    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)
