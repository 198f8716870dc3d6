"""AdamW's groups and the learning-rate schedule."""

import pytest
import torch
from torch import nn

from mambabyte.errors import UserError
from mambabyte.models import HNetConfig, MambaByteConfig
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.models.lora import add_adapters
from mambabyte.training.optimizer import AdamWConfig, is_decayed, set_learning_rate


def test_schedule_warms_up_and_decays() -> None:
    config = AdamWConfig(learning_rate=1.0, warmup_steps=10, final_learning_rate_ratio=0.1)
    rates = [config.learning_rate_at(step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)  # half way: the mean of both ends
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert config.learning_rate_at(500, 110) == pytest.approx(0.1)


def test_a_late_decay_begins_at_its_step_and_is_linear() -> None:
    config = AdamWConfig(learning_rate=1.0, warmup_steps=10, final_learning_rate_ratio=0.1, decay_from=60)
    rates = [config.learning_rate_at(step, 110) for step in range(111)]
    assert rates[9:61] == [1.0] * 52
    assert rates[85] == pytest.approx(0.55)
    assert rates[110] == config.learning_rate_at(500, 110) == pytest.approx(0.1)


def test_without_an_end_the_rate_stays_at_its_peak() -> None:
    config = AdamWConfig(learning_rate=1.0, warmup_steps=10)
    assert config.learning_rate_at(4, None) == 0.5
    assert config.learning_rate_at(9, None) == config.learning_rate_at(10**6, None) == 1.0


def test_a_decay_within_the_warm_up_begins_at_the_rate_reached() -> None:
    config = AdamWConfig(learning_rate=1.0, warmup_steps=10, final_learning_rate_ratio=0.0, decay_from=3)
    rates = [config.learning_rate_at(step, 7) for step in range(8)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_without_warm_up_the_peak_comes_first() -> None:
    assert AdamWConfig(learning_rate=2.0, warmup_steps=0).learning_rate_at(0, 10) == 2.0


def test_only_matrices_are_decayed() -> None:
    model = MambaByteConfig(d_model=16, n_layer=1, d_state=4).build()
    optimizer = AdamWConfig(learning_rate=1e-3, warmup_steps=1).build(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, exempt = (
        {names[p].rpartition("mixer.")[2] for p in group["params"]} for group in optimizer.param_groups
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {"in_proj.weight", "conv1d.weight", "lm_head.weight", "backbone.embedding.weight"} <= decayed
    assert {"A_log", "D", "conv1d.bias", "dt_proj.bias", "backbone.norm_f.weight"} <= exempt
    assert len(decayed) + len(exempt) == len(names)


def test_learning_rate_multipliers_make_groups_of_their_own() -> None:
    model = HNetConfig(learning_rate_multipliers=[2.5, 0.5]).build()
    config = AdamWConfig(learning_rate=1e-3, warmup_steps=1)
    optimizer = config.build(model)
    set_learning_rate(optimizer, 0.1)
    inner = {id(parameter) for parameter in model.backbone.main_network.parameters()}
    for group in optimizer.param_groups:
        inside = {id(parameter) in inner for parameter in group["params"]}
        assert len(inside) == 1
        assert group["lr"] == pytest.approx(0.1 * (0.5 if inside.pop() else 2.5))
        assert {is_decayed(parameter) for parameter in group["params"]} == {group["weight_decay"] > 0}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_adapters_learn_at_the_rate_of_the_weights_beside_them() -> None:
    pytest.importorskip("peft")
    model = HNetConfig(learning_rate_multipliers=[2.5, 0.5]).build()
    add_adapters(model, LoraSettings(rank=2, alpha=4, targets=["in_proj", "fc1"]))
    optimizer = AdamWConfig(learning_rate=1e-3, warmup_steps=1).build(model)
    set_learning_rate(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, rate in found.items() if rate == pytest.approx(0.05)} == {
        name for name in found if ".main_network." in name
    }
    assert {rate for name, rate in found.items() if ".main_network." not in name} == {0.25}


def test_an_optimizer_saved_before_there_were_multipliers_goes_on() -> None:
    model = MambaByteConfig(d_model=16, n_layer=1, d_state=4).build()
    optimizer = AdamWConfig(learning_rate=1e-3, warmup_steps=1).build(model)
    decayed = [[p for p in model.parameters() if is_decayed(p) == wanted] for wanted in (True, False)]
    assert [group["params"] for group in optimizer.param_groups] == decayed
    before = torch.optim.AdamW([{"params": params} for params in decayed])
    assert set(optimizer.param_groups[0]) == set(before.param_groups[0])
    optimizer.load_state_dict(before.state_dict())
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_an_optimizer_of_ones_own_needs_groups_for_multipliers() -> None:
    model = HNetConfig(learning_rate_multipliers=[2.5, 0.5]).build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    with pytest.raises(UserError, match=r"set model\.learning_rate_multipliers=null"):
        set_learning_rate(optimizer, 0.1)


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    optimizer = AdamWConfig(learning_rate=1e-3, warmup_steps=1).build(model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]


def test_settings_replace_those_of_a_restored_state() -> None:
    model = nn.Linear(3, 3)
    saved = AdamWConfig(1e-3, 1, betas=[0.8, 0.9], weight_decay=0.5).build(model).state_dict()
    config = AdamWConfig(1e-3, 1)
    optimizer = config.build(model)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    config.apply(optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.95)
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("settings", [{"learning_rate": -1.0}, {"betas": [0.9]}, {"betas": [0.9, 1.0]}])
def test_values_out_of_range_are_user_errors(settings: dict) -> None:
    with pytest.raises(UserError, match="optimizer"):
        AdamWConfig(**{"learning_rate": 1.0, "warmup_steps": 1, **settings})
