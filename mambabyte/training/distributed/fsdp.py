"""A model whose parameters are shared out between ranks (PyTorch's FSDP2), and that model whole again."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mambabyte.models import ByteLM


def shard(model: ByteLM, mesh: Any) -> None:
    """Give each rank of ``mesh`` its part of every parameter: block by block, then what is in no block."""
    # a block's state may be a view of what it computed; no model works in place on it
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    exempt = [name for name, parameter in model.named_parameters() if hasattr(parameter, "_no_weight_decay")]
    for block in model.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in exempt:  # parameters are new objects now
        model.get_parameter(name)._no_weight_decay = True  # type: ignore[attr-defined]


def whole_copy(model: ByteLM, main: bool) -> ByteLM | None:
    """A model with all weights of a sharded one, on its device: on the main rank, None on the others, which
    have to call this too."""
    whole: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if main:
            whole[name] = gathered
    if not main:
        return None
    with torch.device("meta"):
        copy = model.config.build()
    copy.load_state_dict(whole, assign=True)
    return copy
