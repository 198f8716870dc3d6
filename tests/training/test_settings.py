"""The typed configuration and its arithmetic."""

import re
from dataclasses import replace

import pytest

from mambabyte.errors import UserError
from mambabyte.training.settings import CallbackSettings, TrainerSettings, TrainSettings


def trainer(**settings) -> TrainerSettings:
    return TrainerSettings(**{"max_steps": 1, "global_batch_bytes": 4096, "micro_batch_size": 2, **settings})


def test_accumulation_keeps_the_bytes_of_a_step() -> None:
    assert trainer().global_batch_size(context_length=256) == 16
    for world_size, accumulation in ((1, 8), (2, 4), (8, 1)):
        assert trainer().accumulation(256, world_size) == accumulation


def test_what_does_not_divide_names_the_nearest_values() -> None:
    with pytest.raises(UserError, match="4000 or 5000"):
        trainer().global_batch_size(1000)
    with pytest.raises(UserError, match="3072 or 4608"):
        trainer().accumulation(256, world_size=3)
    with pytest.raises(UserError, match=r"that are: 16384$"):
        trainer(micro_batch_size=64).accumulation(256, world_size=1)


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"micro_batch_size": 0}, {"gradient_clip": 0.0}])
def test_values_out_of_range_are_user_errors(settings: dict) -> None:
    with pytest.raises(UserError, match="trainer"):
        trainer(**settings)


def test_an_interval_of_no_steps_is_a_user_error() -> None:
    with pytest.raises(UserError):
        CallbackSettings(log_every=0)


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/../..", "a//b", "\x1b[31mred", "a\nb", "a\udcff"])
def test_a_name_that_names_no_folder_is_refused(name) -> None:
    settings = TrainSettings.compose()
    with pytest.raises(UserError, match="name must name a folder"):
        replace(settings, name=name)


@pytest.mark.parametrize("name", ["~", "~/hh", "~root/x", "/etc/x", "../x", "a/../../x"])
def test_a_name_is_no_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(UserError, match=rf"name must .*'{re.escape(name)}'"):
        TrainSettings.compose(f"name={name}")


def test_data_by_text_that_looks_like_numbers() -> None:
    composed = TrainSettings.compose("data=files", "data.path=[2024_01_15,b c]", "data.folder=1.10")
    assert composed.data.source["path"] == ["2024_01_15", "b c"]
    assert str(composed.data.folder) == "1.10"
    composed = TrainSettings.compose("data=hf", "data.name=a/b", "data.revision=1234e5", "data.path=null")
    assert (composed.data.source["revision"], composed.data.source["path"]) == ("1234e5", None)


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    settings = TrainSettings.compose("trainer.max_steps=50")
    settings.check_schedule()
    settings.trainer.max_steps = 49
    with pytest.raises(UserError, match="warmup_steps=50 is more than all"):
        settings.check_schedule()


def test_a_decay_that_never_begins_or_that_the_clock_decides_is_refused() -> None:
    settings = TrainSettings.compose("trainer.max_steps=80", "optimizer.decay_from=79")
    settings.check_schedule()
    settings.optimizer.decay_from = 80
    with pytest.raises(UserError, match=r"decay_from=80 is not below trainer\.max_steps=80"):
        settings.check_schedule()
    settings.trainer.max_steps = None
    with pytest.raises(UserError, match=r"decay_from=80 is what budget\.training_seconds decides"):
        settings.check_schedule()
