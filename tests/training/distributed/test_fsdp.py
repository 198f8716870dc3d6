"""What sharding keeps of a model, in a process group of one rank."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from mambabyte.training.distributed.fsdp import shard
from tests.models.every_model import MODELS, random_bytes


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def test_a_sharded_model_of_chunks_keeps_its_marks_and_figures(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    model = replace(MODELS["hnet-2-stages"], learning_rate_multipliers=[2, 1, 0.5]).build()
    marks = {name: dict(parameter.__dict__) for name, parameter in model.named_parameters()}
    assert {mark["_learning_rate_multiplier"] for mark in marks.values()} == {2, 1, 0.5}
    assert any("_no_weight_decay" in mark for mark in marks.values())
    bytes, start = random_bytes(2, 40), torch.zeros(2, 40, dtype=torch.bool)
    start[0, 7] = True
    rates, loss = model.chunk_rates(bytes), model.training_loss(bytes, bytes, start)
    shard(model, mesh, in_bf16=False)
    for name, parameter in model.named_parameters():
        assert marks[name].items() <= parameter.__dict__.items(), name
    assert model.chunk_rates(bytes) == rates
    sharded = model.training_loss(bytes, bytes, start)
    assert torch.equal(sharded.nats, loss.nats)
    assert torch.equal(sharded.auxiliary, loss.auxiliary)
