"""Small MambaByte models for the tests of formats, and folders of them as other programs lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mambabyte.models import ByteLM, MambaByteConfig

LENGTHS = (1, 65, 1000)
SMALL = {"d_model": 24, "n_layer": 2, "d_state": 5, "d_conv": 3, "dt_rank": 3}


def small_model(**changes: Any) -> ByteLM:
    """A model whose every weight is random, the ones that begin as zeros and ones included."""
    torch.manual_seed(1)
    model = MambaByteConfig(**{**SMALL, **changes}).build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm.bias", "norm_f.weight", "norm_f.bias", ".D")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def some_bytes(length: int, seed: int = 2) -> Tensor:
    return torch.randint(256, (1, length), generator=torch.Generator().manual_seed(seed))


def mamba_ssm_config(model: ByteLM, **changes: Any) -> dict[str, Any]:
    """As mamba_ssm writes it; a key that is changed to ... is left out."""
    config = model.config
    ssm = {key: getattr(config, key) for key in ("d_state", "d_conv", "expand")} | {
        "dt_rank": config.time_step_rank
    }
    description = {
        "d_model": config.d_model, "d_intermediate": 0, "n_layer": config.n_layer, "vocab_size": 256,
        "ssm_cfg": ssm, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": config.norm == "rms",
        "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8,
        "tie_embeddings": config.tie_embeddings, **changes,
    }  # fmt: skip
    return {key: value for key, value in description.items() if value is not ...}


def write_folder(
    folder: Path, weights: dict[str, Tensor], config: Any, layout: str = "pytorch_model.bin"
) -> Path:
    """A model's folder with its weights in one file, or in two if ``layout`` ends in .index.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    stem, _, kind = layout.removesuffix(".index.json").rpartition(".")
    save = {"bin": torch.save, "safetensors": save_file}[kind]
    if not layout.endswith(".index.json"):
        save(weights, folder / layout)
        return folder
    places = {}
    for number in (1, 2):
        name = f"{stem}-0000{number}-of-00002.{kind}"
        part = dict(list(weights.items())[number - 1 :: 2])
        save(part, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / layout).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
