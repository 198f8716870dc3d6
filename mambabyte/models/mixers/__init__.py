"""Sequence mixers behind one contract (`mixers/mixer.py`), each in a file of its own."""
# ruff: noqa: F401, as every import of a config is an export

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambabyte.models.mixers.attention import AttentionConfig
    from mambabyte.models.mixers.cnn import CNNConfig
    from mambabyte.models.mixers.h3 import H3Config
    from mambabyte.models.mixers.linear_attention import LinearAttentionConfig
    from mambabyte.models.mixers.lstm import LSTMConfig
    from mambabyte.models.mixers.mamba2 import Mamba2Config
    from mambabyte.models.mixers.mamba3 import Mamba3Config
    from mambabyte.models.mixers.mixer import MixerConfig, Place, SequenceMixer
    from mambabyte.models.mixers.rwkv import RWKVConfig
    from mambabyte.models.mixers.s4 import S4Config
    from mambabyte.models.mixers.s4d import S4DConfig
    from mambabyte.models.mixers.s6 import S6Config
    from mambabyte.models.mixers.ssd import SSDConfig

# The names of the configs, without `Config`, and of their modules, which are those of the group `mixer` too.
MIXERS = {
    "Attention": "attention", "CNN": "cnn", "H3": "h3", "LinearAttention": "linear_attention", "LSTM": "lstm",
    "Mamba2": "mamba2", "Mamba3": "mamba3", "RWKV": "rwkv", "S4": "s4", "S4D": "s4d", "S6": "s6",
    "SSD": "ssd",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    modules = {**MIXERS, "Mixer": "mixer", "Place": "mixer", "SequenceMixer": "mixer"}
    module = modules.get(name.removesuffix("Config"))
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
