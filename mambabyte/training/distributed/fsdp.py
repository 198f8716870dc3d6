"""Sharding a model's parameters between ranks with PyTorch's FSDP2, and copying the whole model back."""

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import ReadsChunks
from mambabyte.models.documentwise import DocumentwiseByteLM
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.models.lora import merged
from mambabyte.models.meta_device import on_meta_device

# Autocast would round the matrices where they are used, and their gradients: rounded before they are sent,
# they give the same bits. Gradients are summed in fp32.
_ROUNDED = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def shard(model: ByteLM, mesh: Any, in_bf16: bool) -> None:
    """Shard every parameter between the ranks of ``mesh``, block by block, with PyTorch's FSDP2.

    Args:
        in_bf16: gather the matrices of the blocks, nearly all that there is, in bf16. They then work under
            autocast only. All else (norms, biases, convolutions, a scan's A, D and step size) stays fp32.
    """
    # FSDP2 warns about views among a block's outputs, which its state may be; no model changes it in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    marks = {name: dict(parameter.__dict__) for name, parameter in model.named_parameters()}
    for block in model.blocks():
        matrices = model.matrices(block) if in_bf16 else []
        if matrices:
            fully_shard(matrices, mesh=mesh, mp_policy=_ROUNDED)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "training_loss")
    if isinstance(model, ReadsChunks):
        register_fsdp_forward_method(model, "chunk_rates")
    if isinstance(model, DocumentwiseByteLM):
        model.calls_of_all = partial(_most_of_all, group=mesh.get_group(), device=mesh.device_type)
    for name, own in marks.items():  # such as _no_weight_decay; fully_shard has replaced the parameters
        model.get_parameter(name).__dict__.update(own)


def _most_of_all(count: int, group: Any, device: str) -> int:
    """The largest of all ranks' numbers."""
    counts = torch.tensor(count, device=device)
    distributed.all_reduce(counts, distributed.ReduceOp.MAX, group=group)
    return int(counts)


def unsharded_copy(model: ByteLM, main: bool, lora: LoraSettings | None = None) -> ByteLM | None:
    """A copy of a sharded model with all its weights, on the same device, and with its adapters merged, which
    are ``lora``; None if ``main`` is false. Every rank must call this."""
    whole: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if main:  # the others drop each tensor at once
            whole[name] = gathered
    if not main:
        return None
    with on_meta_device():
        copy = model.config.build()
    copy.load_state_dict(whole if lora is None else merged(whole, lora), assign=True)
    return copy
