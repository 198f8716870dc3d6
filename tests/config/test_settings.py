"""Dataclasses filled from plain values: conversions, ranges, and the sentences about mistakes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from omegaconf import OmegaConf

from mambabyte.config.composition import plain
from mambabyte.config.settings import Settings, TargetSettings, fill, setting, to_plain
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


def filled(given: dict[str, Any]) -> Schema:
    section = OmegaConf.create({"context": 64, "trainer": {"steps": 1, **given}}).trainer
    return fill(Schema, plain(section), "trainer")


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
    ],
)
def test_values_are_converted(given, expected):
    found = filled(given)
    wanted = Schema(**{"steps": 1, **expected})
    assert found == wanted
    for name in expected:
        assert type(getattr(found, name)) is type(getattr(wanted, name))


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
        ({"inner": {"_target_": "a.B"}}, "there is no setting trainer.inner._target_; choose from width"),
        (
            {"rate": "${nowhere}"},
            "trainer.rate=${nowhere} refers to a setting nowhere, which there is not; for the characters ${ "
            "write 'trainer.rate=\\${nowhere}'",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence(given, sentence):
    with pytest.raises(UserError) as caught:
        filled(given)
    assert str(caught.value) == sentence


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match=r"^trainer\.steps is missing"):
        fill(Schema, {"rate": 1}, "trainer")


@dataclass
class Ranged(Settings):
    section: ClassVar[str] = "trainer"
    steps: int | Literal["auto"] = setting(default=1, at_least=1)
    betas: tuple[float, float] = setting(default=(0.9, 0.95), at_least=0, below=1)
    clip: float | None = setting(default=None, above=0)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("steps", 0, "trainer.steps must be at least 1, not 0"),
        ("steps", "some", "trainer.steps must be an integer or auto, not 'some'"),
        ("betas", [0.9, 1], "trainer.betas must be at least 0 and below 1, not [0.9, 1.0]"),
        ("clip", 0, "trainer.clip must be above 0, or null, not 0.0"),
        ("clip", float("nan"), "trainer.clip must be a number or null, not nan"),
        ("clip", float("inf"), "trainer.clip must be a number or null, not inf"),
        ("clip", 10**400, f"trainer.clip must be a number or null, not {10**400}"),
        ("stepz", 1, "there is no setting trainer.stepz; did you mean steps?"),
    ],
)
def test_a_field_is_checked_whenever_it_is_set(name, value, sentence):
    settings = Ranged(steps="auto")
    with pytest.raises(UserError) as caught:
        setattr(settings, name, value)
    assert str(caught.value) == sentence
    if name != "stepz":
        for make in (lambda: replace(settings, **{name: value}), lambda: fill(Ranged, {name: value})):
            with pytest.raises(UserError, match=name):
                make()
    assert settings == Ranged(steps="auto")


@dataclass
class Optimizer(TargetSettings):
    section: ClassVar[str] = "optimizer"


@dataclass
class Mine(Optimizer):
    rate: float = 0.1


def test_the_configuration_names_a_class_of_the_users_own():
    target = f"{__name__}.Mine"
    found = Optimizer.from_settings({"_target_": target, "rate": 1}, "optimizer")
    assert found == Mine(1.0)
    assert to_plain(found) == {"_target_": target, "rate": 1.0}
    for values, sentence in [
        ({"rate": 1}, "optimizer needs a _target_"),
        ({"_target_": "no.such.Class"}, r"optimizer\._target_=no\.such\.Class cannot be imported"),
        ({"_target_": "os.system"}, "is not a class"),
        ({"_target_": "pathlib.Path"}, "is not a dataclass derived from Optimizer"),
        ({"_target_": target, "rates": 1}, "there is no setting optimizer.rates; did you mean rate"),
    ]:
        with pytest.raises(UserError, match=sentence):
            Optimizer.from_settings(values, "optimizer")
