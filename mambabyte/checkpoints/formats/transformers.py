"""transformers' MambaForCausalLM: a folder with config.json, model.safetensors and a tokenizer of bytes."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambabyte.checkpoints.formats import byte_tokenizer
from mambabyte.checkpoints.formats.layout import CONFIG
from mambabyte.checkpoints.formats.state_dict import Given
from mambabyte.checkpoints.formats.weights import write_tensors
from mambabyte.errors import UserError
from mambabyte.models import ByteLM, MambaByteConfig
from mambabyte.models.byte_lm import VOCABULARY
from mambabyte.runtime.valid_json import valid_json

MODEL_TYPE = "mamba"
_OURS = {
    "hidden_size": "d_model", "num_hidden_layers": "n_layer", "state_size": "d_state", "expand": "expand",
    "conv_kernel": "d_conv", "time_step_rank": "dt_rank", "layer_norm_epsilon": "norm_epsilon",
    "tie_word_embeddings": "tie_embeddings",
}  # fmt: skip
NAMES = {ours: theirs for theirs, ours in _OURS.items()}
_ONE_VALUE = {"hidden_act": "silu", "use_bias": False, "use_conv_bias": True}
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # all 256 are data


def given(config: Mapping[str, Any], where: str) -> Given:
    """What a config.json sets of a MambaByte's config; its other keys are of transformers itself.

    Raises:
        UserError: it asks for what no MambaByte has.
    """
    for key, value in _ONE_VALUE.items():
        if config.get(key, value) != value:
            raise UserError(
                f"the config of '{where}' says {key}={reprlib.repr(config[key])}, which mambabyte has not"
            )
    found = {ours: config[theirs] for theirs, ours in _OURS.items() if theirs in config}
    found = {"tie_embeddings": True, **found, "norm": "rms"}  # what transformers does without a word
    found |= {"vocab_size": config["vocab_size"]} if "vocab_size" in config else {}
    epsilon = found.get("norm_epsilon", 1e-5)
    if not isinstance(epsilon, (int, float)):
        raise UserError(f"the config of '{where}' says layer_norm_epsilon={reprlib.repr(epsilon)}")
    if found.get("dt_rank") == "auto":
        del found["dt_rank"]
    return found


def check(model: ByteLM) -> None:
    """Raise UserError if the layout cannot hold the model."""
    require_rms_mamba(model, "transformers", "its MambaForCausalLM")


def require_rms_mamba(model: ByteLM, format: str, reader: str) -> MambaByteConfig:
    """The model's config; UserError if it is no plain Mamba with RMSNorms, the only one that ``reader``, the
    program that reads ``format``, knows."""
    config = model.config
    if not isinstance(config, MambaByteConfig):
        raise UserError(f"format={format} holds MambaByte models, and this one is {model.kind}")
    if config.norm != "rms":
        raise UserError(
            f"format={format} has no LayerNorm with bias: {reader} knows RMSNorm alone, so train with "
            "model.norm=rms, or export as format=mamba_ssm"
        )
    if config.ngram > 1:
        raise UserError(f"format={format} has no n-gram embeddings: export as format=safetensors")
    return config


def write(model: ByteLM, folder: Path) -> None:
    """Write the model and its tokenizer into ``folder``; the model passed :func:`check`."""
    config = model.config
    assert isinstance(config, MambaByteConfig)
    weights = {
        name.replace("backbone.embedding.", "backbone.embeddings."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (config.tie_embeddings and name == "lm_head.weight")
    }
    description = {
        "architectures": ["MambaForCausalLM"], "model_type": MODEL_TYPE, "vocab_size": VOCABULARY,
        **{theirs: getattr(config, ours) for theirs, ours in _OURS.items()},
        "time_step_rank": config.time_step_rank, "intermediate_size": config.d_inner,
        "time_step_min": config.dt_min, "time_step_max": config.dt_max,
        **_ONE_VALUE, **_NO_TOKENS, "residual_in_fp32": True, "use_cache": True,
        "dtype": str(next(iter(weights.values())).dtype).removeprefix("torch."),
    }  # fmt: skip
    files = {CONFIG: description, "generation_config.json": _NO_TOKENS, **byte_tokenizer.files()}
    for name, content in files.items():
        text = valid_json(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    write_tensors(weights, folder)
