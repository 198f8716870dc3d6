"""Every model and every source of conf/, each setting of it mutated, is built or refused in one sentence."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mambabyte.config.composition import config_dir, plain
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError
from mambabyte.models import ByteLMConfig
from mambabyte.training.planning.memory_estimate import on_meta
from mambabyte.training.settings import TrainSettings

WRONG = ["text", -1, 0, 10**18, None, "", [], [1, "x"], {}, {"a": 1}, math.nan, math.inf, True, 1.5]
EDGES = [1, 1e-300, 1e-12, 24]
NEEDED = {
    "files": ["data.path=notes"],
    "hf": ["data.name=someone/texts"],
    "mixture": ["data.parts={a: {data: stdlib, weight: 2}}"],
    "mixer_stack": ["mixer=s6"],
}
LEFT_OUT = ["wikipedia_mixture", "of_ckpt"]  # a mixture like any other, and no model of its own
LEFT_OUT += ["hnet_1stage_l", "hnet_1stage_xl", "hnet_2stage_l", "hnet_2stage_xl"]  # keys of the small ones
# Of a model that is built and run.
SMALL = {"n_layer": 1, "d_model": 16, "n_head": 2, "d_ff": 32, "d_state": 4, "n_latents": 4, "max_length": 64}
SMALL |= {"local_n_layer": 1, "local_d_model": 16, "local_n_head": 2, "local_d_ff": 32, "head_dim": 8}

Place = tuple[str | int, ...]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml") if path.stem not in LEFT_OUT)


def section(name: str, choice: str) -> dict[str, Any]:
    return plain(TrainSettings.compose_yaml([f"{name}={choice}", *NEEDED.get(choice, [])])[0])[name]


def small(values: dict[str, Any]) -> dict[str, Any]:
    """A model's or a mixer's section with small sizes in the place of those that it has."""
    if "arch_layout" in values:  # H-Net's, of the config's number of stages
        stages = len(values["d_model"])
        layout: list[Any] = ["T1"]
        for _ in range(stages - 1):
            layout = ["m1", layout, "t1"]
        attention = {"num_heads": [2] * stages, "rotary_emb_dim": [4] * stages}
        sizes = {"arch_layout": layout, "d_model": [16] * stages, "d_intermediate": [0] * (stages - 1) + [32]}
        sections = {"ssm_cfg": {"d_state": 4, "headdim": 8}, "attn_cfg": attention}
        return {**values, **sizes, **{name: values[name] | section for name, section in sections.items()}}
    sizes = {key: size for key, size in SMALL.items() if values.get(key) is not None}
    if values.get("layout"):
        sizes |= {"layout": "m1 t1", "n_layer": 2}
    if isinstance(values.get("mixer"), dict):
        sizes["mixer"] = small(values["mixer"])
    return {**values, **sizes}


def places(tree: Any, place: Place = ()) -> Iterator[Place]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*place, key)
        yield from places(value, (*place, key))


def replaced(tree: Any, place: Place, value: Any) -> Any:
    """The tree with another value at a place; the original is left as it was."""
    if not place:
        return value
    changed = copy.copy(tree)
    changed[place[0]] = replaced(tree[place[0]], place[1:], value)
    return changed


def check(tree: dict[str, Any], obey: Callable[[dict[str, Any]], None]) -> None:
    """Each mutated tree is obeyed or raises a UserError of one line; any other exception is a fault."""
    obey(tree)
    faults = []
    for place in places(tree):
        for value in [*WRONG, *EDGES]:
            what = f"{'.'.join(map(str, place))}={value!r}"
            try:
                obey(replaced(tree, place, value))
            except UserError as fault:
                if "\n" in str(fault) or not str(fault).strip():
                    faults.append(f"{what}: not one sentence: {str(fault)!r}")
            except Exception as fault:
                faults.append(f"{what}: {type(fault).__name__}: {fault}")
    assert not faults, "\n".join(faults)


def read(values: dict[str, Any]) -> None:
    DataSettings.from_settings(values, "data").build_source()


def run(values: dict[str, Any]) -> None:
    """Build the model on paper and, if it is small, in memory; its weights and predictions are finite."""
    config = ByteLMConfig.from_settings(values, "model")
    assert isinstance(config, ByteLMConfig)
    on_paper = on_meta(config)
    assert on_paper.flops_per_byte(8).training > 0
    if on_paper.num_parameters() < 10**5:
        model = config.build()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert model(torch.arange(8)[None]).isfinite().all()


@pytest.mark.parametrize("choice", choices("data"))
def test_every_setting_of_every_source_is_obeyed_or_refused_in_one_sentence(choice: str) -> None:
    check(section("data", choice), read)


@pytest.mark.parametrize("choice", choices("model"))
def test_every_setting_of_every_model_is_obeyed_or_refused_in_one_sentence(choice: str) -> None:
    check(small(section("model", choice)), run)


@pytest.mark.parametrize("choice", choices("mixer"))
def test_every_setting_of_every_mixer_is_obeyed_or_refused_in_one_sentence(choice: str) -> None:
    stack = plain(TrainSettings.compose_yaml(["model=mixer_stack", f"mixer={choice}"])[0])["model"]
    stack |= {"d_model": 16, "n_layer": 1, "mlp": "none"}
    check(small(stack["mixer"]), lambda values: run({**stack, "mixer": values}))
