"""The models, all of them `ByteLM`s, and the way from a checkpoint's plain description to a config."""

from __future__ import annotations

import dataclasses
from typing import Any

from mambabyte.errors import UserError
from mambabyte.models.byte_lm import ByteLM, ByteLMConfig, FlopsPerByte
from mambabyte.models.cnn import CNN, CNNConfig
from mambabyte.models.gated_s4d import GatedS4D, GatedS4DConfig
from mambabyte.models.lstm import LSTM, LSTMConfig
from mambabyte.models.mamba import MambaByte, MambaByteConfig
from mambabyte.models.megabyte import MegaByte, MegaByteConfig
from mambabyte.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from mambabyte.models.transformer import Transformer, TransformerConfig

__all__ = [
    "CNN",
    "LSTM",
    "ByteLM",
    "ByteLMConfig",
    "CNNConfig",
    "FlopsPerByte",
    "GatedS4D",
    "GatedS4DConfig",
    "LSTMConfig",
    "MambaByte",
    "MambaByteConfig",
    "MegaByte",
    "MegaByteConfig",
    "PerceiverAR",
    "PerceiverARConfig",
    "Transformer",
    "TransformerConfig",
    "config_from_dict",
]


def config_from_dict(description: dict[str, Any]) -> ByteLMConfig:
    """The typed config that `ByteLMConfig.to_dict` described: one of this package's, and nothing else.

    Raises:
        UserError: another target, an unknown field or a value of the wrong type.
    """
    fields = dict(description)
    target = str(fields.pop("_target_", ""))
    name = target.removeprefix("mambabyte.models.")
    config: Any = globals().get(name) if name in __all__ else None
    if not (isinstance(config, type) and ByteLMConfig in config.__mro__[1:]):
        raise UserError(
            f"this checkpoint describes a model {target!r}, which this version of mambabyte does not have"
        )
    unknown = fields.keys() - {field.name for field in dataclasses.fields(config)}
    if unknown:
        raise UserError(f"{name} has no field {sorted(unknown)[0]!r}; the checkpoint is of another version")
    return config(**fields)
