"""The typed configuration and its arithmetic."""

import pytest

from mambabyte.errors import UserError
from mambabyte.training.settings import CallbackSettings, TrainerSettings


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
