"""The estimated memory of a step is what real tensors take."""

from dataclasses import replace

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.models import (
    CNNConfig,
    GatedS4DConfig,
    HNetConfig,
    LSTMConfig,
    MambaByteConfig,
    MegaByteConfig,
    PerceiverARConfig,
    SpaceByteConfig,
    TransformerConfig,
)
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.runtime import memory
from mambabyte.runtime.memory import available_memory
from mambabyte.training.initial_weights import trainable_model
from mambabyte.training.planning import memory_estimate as estimate
from mambabyte.training.planning.memory_estimate import LiveStorages, MemoryBudget, peak_of_a_pass
from mambabyte.training.settings import TrainerSettings
from tests.models.every_model import chunks_by_position
from tests.models.layer_traffic import MAMBABYTE_353M, as_on_cuda

CPU = torch.device("cpu")
LENGTH = 96
SETTINGS = TrainerSettings(max_steps=1, global_batch_bytes=8 * LENGTH, micro_batch_size=2, accelerator="cpu")
SMALL = {"d_model": 32, "n_layer": 2}
MODELS = {
    "mambabyte": MambaByteConfig(**SMALL),
    "transformer": TransformerConfig(**SMALL, n_head=2),
    "megabyte": MegaByteConfig(**SMALL, n_head=2, local_d_model=16, local_n_layer=1, local_n_head=2),
    "perceiver_ar": PerceiverARConfig(**SMALL, n_head=2),
    "spacebyte": SpaceByteConfig(**SMALL, n_head=2, local_d_model=16, local_n_head=1, local_window=16),
    "gated_s4d": GatedS4DConfig(**SMALL),
    "hnet": HNetConfig(d_model=[32, 32], attn_cfg={"rotary_emb_dim": [8, 8]}, bytes_per_chunk=[2]),
    "cnn": CNNConfig(**SMALL),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_on_fake_tensors_counts_what_real_ones_take(name: str, precision) -> None:
    settings = replace(SETTINGS, precision=precision)
    expected = peak_of_a_pass(MODELS[name], settings, LENGTH, CPU)
    model = MODELS[name].build()
    chunks_by_position(model)  # as many as H-Net expects
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveStorages() as live:
        # the patches that SpaceByte expects: one in six bytes
        window = torch.tensor([list(b"a text" + b", text" * (LENGTH // 6 - 1))] * 2, dtype=torch.uint8)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            nats, _ = model.training_loss(window, window)
        nats.mean().backward()
    # exact except for a second copy of the targets and constants that a model caches in its first pass
    assert expected == pytest.approx(live.peak, rel=0.1)


def test_an_h_net_needs_memory_for_the_many_chunks_of_its_first_steps() -> None:
    few, half = (replace(MODELS["hnet"], bytes_per_chunk=(size,)) for size in (6.0, 2.0))
    assert peak_of_a_pass(few, SETTINGS, LENGTH, CPU) == peak_of_a_pass(half, SETTINGS, LENGTH, CPU)


@pytest.mark.parametrize("trained", ["lora", "freeze"])
def test_what_is_not_trained_has_no_gradient_and_no_optimizer(trained: str) -> None:
    config = MODELS["mambabyte"]
    what: tuple[LoraSettings | None, list[str]] = (None, ["*_proj.*", "*.embedding.*"])
    if trained == "lora":
        pytest.importorskip("peft")
        what = LoraSettings(rank=4, alpha=8), []
    model = trainable_model(config, *what)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    alone, ddp, fsdp = (
        MemoryBudget(config, replace(SETTINGS, **devices), LENGTH, *what).state
        for devices in ({}, {"devices": 2}, {"devices": 2, "strategy": "fsdp"})
    )
    assert 0 < count < 0.5 * model.num_parameters()
    assert (alone.weights, alone.gradients, alone.optimizer) == tuple(
        4 * n for n in (model.num_parameters(), count, 2 * count)
    )
    assert (ddp.gradients, ddp.optimizer, ddp.weights) == (8 * count, 8 * count, alone.weights)
    assert fsdp.state == alone.state // 2
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    with LiveStorages() as live:
        window = torch.zeros(2, LENGTH, dtype=torch.uint8)
        model.training_loss(window, window)[0].mean().backward()
    expected = peak_of_a_pass(config, SETTINGS, LENGTH, CPU, *what)
    assert expected == pytest.approx(live.peak, rel=0.1)  # as above


def test_adapters_of_353m_take_at_most_six_tenths_of_the_memory_of_all_weights() -> None:
    pytest.importorskip("peft")
    settings, lora = replace(SETTINGS, micro_batch_size=1), LoraSettings(rank=8, alpha=16)
    whole, adapters = (MemoryBudget(MAMBABYTE_353M, settings, 1024, each) for each in (None, lora))
    assert adapters.estimate(1).total <= 0.6 * whole.estimate(1).total


@pytest.mark.parametrize("scan", ["cuda", "triton"])
def test_the_papers_recipe_fits_half_of_a_gpu_of_80_gb(scan: str) -> None:
    """353M in bf16, four windows of 8,192 bytes at a time: with room for validation and fragmentation."""
    settings = replace(SETTINGS, micro_batch_size=4, global_batch_bytes=48 * 8192, precision="bf16")
    with as_on_cuda(scan=scan, conv="triton", norm="triton"):
        step = MemoryBudget(MAMBABYTE_353M, settings, 8192)
        activations = peak_of_a_pass(MAMBABYTE_353M, settings, 8192, CPU)
    assert step.state.state + activations <= 40 * 2**30


def test_the_lstm_is_estimated_too() -> None:
    assert peak_of_a_pass(LSTMConfig(**SMALL), SETTINGS, LENGTH, CPU) > 2 * LENGTH * 256 * 4


def test_a_larger_micro_batch_is_extrapolated_and_recomputing_blocks_saves() -> None:
    budget = MemoryBudget(MODELS["transformer"], SETTINGS, LENGTH)
    eight = peak_of_a_pass(MODELS["transformer"], replace(SETTINGS, micro_batch_size=8), LENGTH, CPU)
    assert budget.estimate(8).activations == pytest.approx(eight, rel=0.02)
    recomputing = replace(SETTINGS, activation_checkpointing=True)
    deep = replace(MODELS["transformer"], n_layer=8)
    assert peak_of_a_pass(deep, recomputing, LENGTH, CPU) < 0.5 * peak_of_a_pass(deep, SETTINGS, LENGTH, CPU)


def test_the_state_of_ranks() -> None:
    weights = 4 * MODELS["cnn"].build().num_parameters()
    alone = MemoryBudget(MODELS["cnn"], SETTINGS, LENGTH).state
    assert (alone.weights, alone.gradients, alone.optimizer) == (weights, weights, 2 * weights)
    ddp = MemoryBudget(MODELS["cnn"], replace(SETTINGS, devices=2), LENGTH).state
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (weights, 2 * weights, 2 * weights)
    fsdp = MemoryBudget(MODELS["cnn"], replace(SETTINGS, devices=2, strategy="fsdp"), LENGTH).state
    assert fsdp.state == pytest.approx(alone.state / 2, abs=4)


def budget_of(available: int, monkeypatch, **settings) -> MemoryBudget:
    monkeypatch.setattr(estimate, "available_memory", lambda device: available)
    return MemoryBudget(MODELS["mambabyte"], replace(SETTINGS, **settings), LENGTH)


def test_a_step_that_does_not_fit_is_refused_with_a_remedy(monkeypatch) -> None:
    enough = MemoryBudget(MODELS["mambabyte"], SETTINGS, LENGTH)
    two, eight = enough.estimate(2).total, enough.estimate(8).total
    budget = budget_of(2 * two, monkeypatch)
    budget.check(2)
    assert budget.fits(2) and not budget.fits(8)
    with pytest.raises(UserError, match=r"micro_batch_size=8 takes .* set trainer\.micro_batch_size=2, or"):
        budget.check(8)
    with pytest.raises(UserError, match=r"trainer\.activation_checkpointing=true, or lower context_length"):
        budget_of(eight // 10, monkeypatch).check(8)
    tight = budget_of(two + 1, monkeypatch)
    tight.check(2)
    assert not tight.fits(2), "it can run, but with nothing to spare"
    said = r" left \(.* without the quarter .* free\): .*, or try it by trainer\.micro"
    with pytest.raises(UserError, match=said):
        tight.refuse(2)
    with pytest.raises(UserError, match=r" left: "):
        budget_of(2 * two, monkeypatch).refuse(2)  # tried in vain


def test_a_model_whose_weights_alone_are_too_large_is_refused_at_once(monkeypatch) -> None:
    def never(*arguments):
        raise AssertionError("no pass is needed to know")

    monkeypatch.setattr(estimate, "peak_of_a_pass", never)
    with pytest.raises(UserError, match="weights, gradients and optimizer state alone take"):
        budget_of(1000, monkeypatch).check(1)
    budget_of(10**9, monkeypatch).check_least()


def test_memory_is_shared_between_the_ranks_of_a_machine(monkeypatch) -> None:
    assert budget_of(900, monkeypatch, devices=3).available == 300


@pytest.mark.parametrize(
    "files",
    [
        {
            "memory.max": "5000000",
            "memory.current": "3000000",
            "memory.stat": "file 9\ninactive_file 500000\n",
        },
        {
            "memory/memory.limit_in_bytes": "5000000",
            "memory/memory.usage_in_bytes": "3000000",
            "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500000\n",
        },
    ],
)
def test_a_containers_limit_counts(files, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    system = available_memory(CPU)
    assert system is not None and system > 5_000_000
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(CPU) == 2_500_000
    (tmp_path / next(iter(files))).write_text("max")
    assert available_memory(CPU) > 5_000_000
