"""Typed sections, the settings of each command against its YAML, and the shipped experiments."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from mambabyte.config.composition import SETTINGS, config_dir, typed
from mambabyte.errors import UserError


@dataclass
class Inner:
    width: int = 1


@dataclass
class Schema:
    steps: int
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.95)
    precision: Literal["fp32", "bf16"] = "fp32"
    devices: int | str = "auto"
    limit: int | None = None
    fused: bool = True
    folder: Path = Path("a")
    names: list[str] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    ends: tuple[int, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    mixture: Inner | None = None


def section(**values: Any) -> DictConfig:
    return OmegaConf.create({"context": 64, "trainer": {"steps": 1, **values}}).trainer


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"steps": 3}, {"steps": 3}),
        ({"steps": 1e3}, {"steps": 1000}),
        ({"rate": 2}, {"rate": 2.0}),
        ({"rate": 1e-3}, {"rate": 1e-3}),
        ({"betas": [0, 1]}, {"betas": (0.0, 1.0)}),
        ({"precision": "bf16"}, {"precision": "bf16"}),
        ({"devices": 2}, {"devices": 2}),
        ({"devices": "auto"}, {"devices": "auto"}),
        ({"limit": None}, {"limit": None}),
        ({"limit": "${context}"}, {"limit": 64}),
        ({"fused": False}, {"fused": False}),
        ({"folder": "b/c"}, {"folder": Path("b/c")}),
        ({"names": ["a", 1]}, {"names": ["a", "1"]}),
        ({"inner": {"width": 4}}, {"inner": Inner(4)}),
        ({"ends": [1, 2, 3]}, {"ends": (1, 2, 3)}),
        ({"weights": {"a": 1}}, {"weights": {"a": 1.0}}),
        ({"mixture": {"width": 2}}, {"mixture": Inner(2)}),
        ({"_target_": "somewhere.Schema"}, {}),
    ],
)
def test_values_are_converted(given, expected):
    filled = typed(section(**given), Schema)
    wanted = Schema(**{"steps": 1, **expected})
    assert filled == wanted
    for name in expected:
        assert type(getattr(filled, name)) is type(getattr(wanted, name))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"steps": "abc"}, "trainer.steps must be an integer, not 'abc'"),
        ({"steps": 1.5}, "trainer.steps must be an integer, not 1.5"),
        ({"steps": True}, "trainer.steps must be an integer, not true"),
        ({"steps": None}, "trainer.steps must be an integer, not null"),
        ({"steps": float("inf")}, "trainer.steps must be an integer, not inf"),
        ({"steps": "???"}, "trainer.steps is not set; add trainer.steps=VALUE"),
        ({"rate": "fast"}, "trainer.rate must be a number, not 'fast'"),
        ({"betas": [0.9]}, "trainer.betas must be a list of 2 values, not [0.9]"),
        ({"betas": [0.9, "x"]}, "trainer.betas[1] must be a number, not 'x'"),
        ({"precision": "fp16"}, "trainer.precision must be one of fp32, bf16, not 'fp16'"),
        ({"devices": [1]}, "trainer.devices must be an integer or text, not [1]"),
        ({"limit": "x"}, "trainer.limit must be an integer or null, not 'x'"),
        ({"fused": 1}, "trainer.fused must be true or false, not 1"),
        ({"names": "a"}, "trainer.names must be a list, not 'a'"),
        ({"inner": 3}, "trainer.inner must be a section of key: value, not 3"),
        ({"inner": {"widht": 3}}, "there is no setting trainer.inner.widht; did you mean width?"),
        ({"mixture": {"width": "x"}}, "trainer.mixture.width must be an integer, not 'x'"),
        ({"weights": {"a": "x"}}, "trainer.weights.a must be a number, not 'x'"),
        ({"stepz": 3}, "there is no setting trainer.stepz; did you mean steps?"),
        ({"rate": "${nowhere}"}, "Interpolation key 'nowhere' not found (at trainer.rate)"),
    ],
)
def test_a_wrong_value_is_one_sentence(given, sentence):
    with pytest.raises(UserError) as caught:
        typed(section(**given), Schema)
    assert str(caught.value) == sentence


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match=r"^trainer\.steps is missing"):
        typed(OmegaConf.create({"trainer": {"rate": 1}}).trainer, Schema)


@pytest.mark.parametrize("command", SETTINGS)
def test_the_settings_of_a_command_are_those_of_its_yaml(command):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        needed = {command: ["ckpt=a"] for command in ("eval", "generate")}
        needed |= {"export": ["ckpt=a", "out=b"]}
        needed |= {command: ["ckpt=a", "file=b"] for command in ("compress", "decompress")}
        cfg = compose(command.replace(" ", "_"), needed.get(command, []))
    schema = SETTINGS[command]
    assert {key for key in cfg if not OmegaConf.is_dict(cfg._get_node(key))} == {
        f.name for f in fields(schema)
    }
    filled = typed(OmegaConf.masked_copy(cfg, [f.name for f in fields(schema)]), schema)
    assert all(f.default is MISSING for f in fields(schema)), "defaults live in the YAML alone"
    device = "cpu" if "compress" in command else "auto"  # the same kind for both, whatever the machine has
    value = {"device": device, "run_dir": "runs/default", "json": False, "out": "b"}
    key = next(key for key in value if hasattr(filled, key))
    assert getattr(filled, key) == value[key]


EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_under_a_name_of_its_own(name):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [f"experiment={name}"])
    assert cfg.run_dir == f"runs/{cfg.name}"
    assert cfg.name != "default"


def test_the_quickstart_is_among_the_experiments():
    assert "quickstart" in EXPERIMENTS
