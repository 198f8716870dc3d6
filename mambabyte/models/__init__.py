"""The models, all of them `ByteLM`s, and the way from a checkpoint's plain description to a config."""
# ruff: noqa: F401, as every import of a model or its config is an export

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mambabyte.config.settings import fill, without_target
from mambabyte.errors import UserError
from mambabyte.models.hyperparameters import ByteLMConfig, OfCheckpoint

if TYPE_CHECKING:
    from mambabyte.models.byte_lm import ByteLM, FlopsPerByte
    from mambabyte.models.cnn import CNN, CNNConfig
    from mambabyte.models.gated_s4d import GatedS4D, GatedS4DConfig
    from mambabyte.models.hnet import HNet, HNetConfig
    from mambabyte.models.lstm import LSTM, LSTMConfig
    from mambabyte.models.mamba import MambaByte, MambaByteConfig
    from mambabyte.models.megabyte import MegaByte, MegaByteConfig
    from mambabyte.models.mixer_stack import MixerStack, MixerStackConfig
    from mambabyte.models.perceiver_ar import PerceiverAR, PerceiverARConfig
    from mambabyte.models.spacebyte import SpaceByte, SpaceByteConfig
    from mambabyte.models.transformer import Transformer, TransformerConfig

_MODELS = {
    "CNN": "cnn", "GatedS4D": "gated_s4d", "HNet": "hnet", "LSTM": "lstm", "MambaByte": "mamba",
    "MegaByte": "megabyte", "MixerStack": "mixer_stack", "PerceiverAR": "perceiver_ar",
    "SpaceByte": "spacebyte", "Transformer": "transformer",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Lazy, so that settings can be checked without importing torch.
    modules = {**_MODELS, "ByteLM": "byte_lm", "FlopsPerByte": "byte_lm"}
    module = modules.get(name.removesuffix("Config"))
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def config_from_dict(description: Mapping[str, Any]) -> ByteLMConfig:
    """The typed config that a checkpoint's ``description`` names: one of this package's, and nothing else.

    Raises:
        UserError: another target, an unknown field or a value of the wrong type.
    """
    target = str(description.get("_target_", ""))
    name = target.removeprefix("mambabyte.models.")
    if name not in [f"{model}Config" for model in _MODELS]:
        raise UserError(
            f"this checkpoint describes a model {target!r}, which this version of mambabyte does not have; "
            "one of your own is read by mambabyte.load(path, config=YourConfig(...))"
        )
    return fill(__getattr__(name), without_target(description))
