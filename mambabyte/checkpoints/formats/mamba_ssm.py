"""mamba_ssm's MambaLMHeadModel: its constructor's arguments as config.json, and pytorch_model.bin."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mambabyte.checkpoints.formats.layout import CONFIG, PICKLE
from mambabyte.checkpoints.formats.state_dict import Given
from mambabyte.checkpoints.writing import save_pickle
from mambabyte.errors import UserError
from mambabyte.models import ByteLM, MambaByteConfig
from mambabyte.models.byte_lm import VOCABULARY
from mambabyte.runtime.valid_json import valid_json

_EPSILON = 1e-5  # that of all its norms: no config can set another
# Arguments that this reader obeys or checks, and those that do not change what a trained model computes.
_READ = {"d_model", "n_layer", "vocab_size", "ssm_cfg", "rms_norm", "tie_embeddings"}
_ONE_VALUE = {"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}}
_WITHOUT_EFFECT = {"residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple"}
_SSM_READ = {"d_state", "d_conv", "expand", "dt_rank"}
NAMES = {"norm": "rms_norm", **{key: f"ssm_cfg.{key}" for key in sorted(_SSM_READ)}}  # where not ours
_SSM_ONE_VALUE = {"layer": "Mamba1", "conv_bias": True, "bias": False}
_SSM_WITHOUT_EFFECT = {
    *("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"),  # of its start and speed
}


def given(config: Mapping[str, Any], where: str) -> Given:
    """What a config.json sets of a MambaByte's config.

    Raises:
        UserError: it asks for what no MambaByte has, or has unknown keys.
    """
    ssm = config.get("ssm_cfg") or {}
    if not isinstance(ssm, Mapping):
        raise UserError(f"the config of '{where}' is damaged: ssm_cfg is no section")
    _check(config, _READ | _WITHOUT_EFFECT, _ONE_VALUE, where)
    _check(ssm, _SSM_READ | _SSM_WITHOUT_EFFECT, _SSM_ONE_VALUE, where)
    found = {
        key: config[key] for key in ("d_model", "n_layer", "vocab_size", "tie_embeddings") if key in config
    }
    found |= {key: ssm[key] for key in _SSM_READ if key in ssm}
    if found.get("dt_rank") == "auto":
        del found["dt_rank"]
    if "rms_norm" in config:
        found["norm"] = "rms" if config["rms_norm"] else "layer"
    return {**found, "norm_epsilon": _EPSILON}


def _check(section: Mapping[str, Any], taken: set[str], only: Mapping[str, Any], where: str) -> None:
    for key, value in section.items():
        if key in only and (value or None) != (only[key] or None):
            raise UserError(
                f"the config of '{where}' says {key}={reprlib.repr(value)}, which mambabyte has not"
            )
        if key not in taken and key not in only and not key.startswith("_"):
            raise UserError(f"the config of '{where}' has {reprlib.repr(key)}, which mamba_ssm does not know")


def check(model: ByteLM) -> None:
    """Raise UserError if the layout cannot hold the model."""
    config = model.config
    if not isinstance(config, MambaByteConfig):
        raise UserError(f"format=mamba_ssm holds MambaByte models, and this one is {model.kind}")
    if config.ngram > 1:
        raise UserError("format=mamba_ssm has no n-gram embeddings: export as format=safetensors")
    if config.norm_epsilon != _EPSILON:
        raise UserError(
            f"format=mamba_ssm has norm_epsilon={_EPSILON:g}, and this model has {config.norm_epsilon:g}"
        )


def write(model: ByteLM, folder: Path) -> None:
    """Write config.json and pytorch_model.bin into ``folder``; the model passed :func:`check`."""
    config = model.config
    assert isinstance(config, MambaByteConfig)
    ssm = {
        "d_state": config.d_state,
        "d_conv": config.d_conv,
        "expand": config.expand,
        "dt_rank": config.time_step_rank,
    }
    description = {
        "d_model": config.d_model, "d_intermediate": 0, "n_layer": config.n_layer, "vocab_size": VOCABULARY,
        "ssm_cfg": ssm, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": config.norm == "rms",
        "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8,
        "tie_embeddings": config.tie_embeddings,
    }  # fmt: skip
    (folder / CONFIG).write_text(valid_json(description, indent=2) + "\n", encoding="utf-8")
    with open(folder / PICKLE, "wb") as file:
        save_pickle(_alone(model.state_dict()), file)


def _alone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, each with memory of its own but for tied ones: a view would bring all of a mapped file."""
    kept: dict[int, Tensor] = {}
    for tensor in weights.values():
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        kept.setdefault(tensor.data_ptr(), tensor if whole else tensor.clone())
    return {name: kept[tensor.data_ptr()] for name, tensor in weights.items()}
