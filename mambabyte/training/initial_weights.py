"""Training that begins from given weights: whose they are, what model they make, and which of them stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from mambabyte import checkpoints
from mambabyte.checkpoints import Checkpoint
from mambabyte.config.settings import suggestion, to_plain
from mambabyte.errors import UserError
from mambabyte.models import ByteLM, ByteLMConfig, config_from_dict
from mambabyte.models.hyperparameters import LoraSettings, OfCheckpoint
from mambabyte.models.lora import add_adapters, load_base
from mambabyte.training.settings import TrainSettings


def with_model_of_checkpoint(settings: TrainSettings, recorded: dict[str, Any]) -> TrainSettings:
    """The settings with the model of ``ckpt`` for ``model=of_ckpt``; with that of the run itself where it has
    one, so that it resumes when the checkpoint is no longer there.

    Args:
        recorded: the configuration in the run's own newest checkpoint; empty without one.

    Raises:
        UserError: the two settings do not fit together, or the checkpoint cannot be read.
    """
    follows = isinstance(settings.model, OfCheckpoint)
    if settings.ckpt is None:
        if follows:
            raise UserError("model=of_ckpt takes the model of ckpt=, which is not set")
        return settings
    if settings.budget.parameters is not None:
        raise UserError(
            "budget.parameters chooses a model's size, and ckpt= has one: set one of them to null"
        )
    if follows and isinstance(recorded.get("model"), dict):
        return replace(settings, model=_with_heads(config_from_dict(recorded["model"]), settings))
    if not recorded:
        there = config_from_dict(initial_checkpoint(settings).model_config)
        if follows:
            _refuse_other_heads(settings, there.prediction_heads)
            there = _with_heads(there, settings)
        else:
            _refuse_other_model(settings, there)
        settings = replace(settings, model=there)
    return settings


def _with_heads(model: ByteLMConfig, settings: TrainSettings) -> ByteLMConfig:
    """The model with the prediction heads that ``model=of_ckpt`` asks for; its defaults leave them alone."""
    heads, weight = settings.model.prediction_heads, settings.model.further_heads_weight
    model = model if heads == 1 else replace(model, prediction_heads=heads)
    return model if weight == 1 else replace(model, further_heads_weight=weight)


def _refuse_other_heads(settings: TrainSettings, there: int) -> None:
    """Raise UserError if a model with ``there`` prediction heads cannot have those that are asked for, or new
    ones would not be trained."""
    asked = settings.model.prediction_heads
    if 1 not in (there, asked) and there != asked:
        raise UserError(
            f"the model of ckpt= has model.prediction_heads={there}, which stays: leave out "
            f"model.prediction_heads={asked}"
        )
    if settings.lora is not None and asked > there:
        raise UserError(
            f"lora= trains its adapters alone, so the new heads of model.prediction_heads={asked} would stay "
            "as they begin: set lora=none, and freeze= for weights that should stay"
        )


def initial_checkpoint(settings: TrainSettings) -> Checkpoint:
    """The checkpoint that ``ckpt`` names; raises its UserError."""
    assert settings.ckpt is not None
    return checkpoints.read(settings.ckpt)


def load_initial_weights(model: ByteLM, settings: TrainSettings) -> None:
    """Replace a new model's weights by those of ``ckpt``, if it is set; raises the UserError of reading."""
    if settings.ckpt is not None:
        load_base(model, initial_checkpoint(settings).build_model().state_dict())


def trainable_model(
    config: ByteLMConfig, lora: LoraSettings | None = None, freeze: Sequence[str] = ()
) -> ByteLM:
    """A new model as a run trains it: with its adapters, and with what is not trained marked as that.

    Raises:
        UserError: a pattern of ``freeze`` or a target of ``lora`` is not there, or peft is missing.
    """
    model = config.build()
    if lora is not None:
        add_adapters(model, lora)
    freeze_weights(model, freeze)
    return model


def freeze_weights(model: nn.Module, patterns: Sequence[str]) -> None:
    """Leave the parameters whose names match one of the shell patterns as they are.

    Raises:
        UserError: a pattern matches no parameter, or all are matched.
    """
    parameters = dict(model.named_parameters())
    every = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matching = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matching:
            for name in (name for name in every if fnmatchcase(name, pattern)):
                first = next(other for other in parameters if parameters[other] is every[name])
                raise UserError(
                    f"freeze: '{name}' is tied to '{first}' in this model: name that, and both stay"
                )
            raise UserError(
                f"freeze: no weight of this model matches '{pattern}'{suggestion(pattern, parameters)}"
            )
        for name in matching:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"freeze={list(patterns)} leaves no weight to train: give fewer patterns")


def _refuse_other_model(settings: TrainSettings, there: Any) -> None:
    then, now = to_plain(there), to_plain(settings.model)
    differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if differing:
        said = ", ".join(f"{key} {then.get(key)} there, {now.get(key)} now" for key in differing)
        if type(there) is not type(settings.model):  # whose settings are all others
            said = f"{there.model.__name__} there, {settings.model.model.__name__} now"
        raise UserError(
            f"'{settings.ckpt}' holds another model ({said}): leave the model to it with model=of_ckpt"
        )
