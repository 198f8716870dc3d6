"""What a state dict of Mamba-1 blocks says of its model: sizes, kind of norm, whether the head is tied."""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mambabyte.checkpoints.building import same_bits, shapes
from mambabyte.checkpoints.formats.weights import differences, listed
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig
from mambabyte.models.byte_lm import VOCABULARY

_EMBEDDING, _HEAD = "backbone.embedding.weight", "lm_head.weight"
_LAYER = re.compile(r"backbone\.layers\.(\d{1,9})\.")
_MIXER = "backbone.layers.0.mixer."
# transformers' name of the embedding, and those of the MambaByte authors' own code; the rest are mamba_ssm's.
_RENAMED = {
    "backbone.embeddings.": "backbone.embedding.",
    "mambabyte.token_embedding.": "backbone.embedding.",
    "mambabyte.final_norm.": "backbone.norm_f.",
    "mambabyte.": "backbone.",
}
_DDP = "module."  # DistributedDataParallel's prefix
_LARGEST_PADDING = 512  # symbols: beyond that it is another vocabulary, and not bytes with padding
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 4  # tensors in a sentence about shapes

Given = Mapping[str, Any]  # what a config file sets: fields of MambaByteConfig, and vocab_size


def understand(
    weights: Mapping[str, Tensor], given: Given, where: str, names: Mapping[str, str] | None = None
) -> tuple[MambaByteConfig, dict[str, Tensor]]:
    """The config of a MambaByte with these weights, and the weights by our names, the head included.

    What ``given`` leaves open the weights decide. Nothing of their size is allocated: a vocabulary padded
    beyond 256 is cut by a view, and stderr says so.

    Args:
        where: what the user calls the model, for messages.
        names: the keys of the config file, by ours; ``rms_norm`` is true where ``norm`` is "rms". Without
            ``norm``, the layout's norms are all RMSNorms.

    Raises:
        UserError: names are missing or unknown, shapes do not fit, or contradict what is given.
    """
    named = _with_our_names(weights, where)
    for name, tensor in named.items():
        if tensor.dtype not in _FLOATS or tensor.layout != torch.strided:
            raise UserError(
                f"'{where}' holds {listed([name])} as {tensor.dtype}: only float weights can be read"
            )
        if tensor.is_meta or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise UserError(f"'{where}' is damaged: {listed([name])} has fewer numbers than its shape says")
    found = _from_shapes(named, where)
    given = dict(given)
    rows, vocabulary = len(named[_EMBEDDING]), given.pop("vocab_size", VOCABULARY)
    if not isinstance(vocabulary, int) or not VOCABULARY <= vocabulary <= rows:
        raise UserError(
            f"the config of '{where}' says vocab_size={reprlib.repr(vocabulary)}, and its weights have "
            f"{rows} symbols: they do not belong together"
        )
    for key, value in given.items():
        if key in found and found[key] != value:
            raise _contradiction(where, key, value, found[key], names or {})
    if found["dt_rank"] == math.ceil(found["d_model"] / 16):
        found["dt_rank"] = None  # the default
    config = MambaByteConfig(**{**given, **found})
    wanted = _shapes_of_all_layers(config)
    tied = {_HEAD} if config.tie_embeddings and _HEAD not in named else set()
    if wrong := differences(named, wanted.keys() - tied, "of this model"):
        raise UserError(f"the weights of '{where}' are not those of a MambaByte: {wrong}")
    named = _without_padding(named, where)
    _check_shapes(named, wanted, where)
    return config, named


def _contradiction(where: str, key: str, said: Any, found: Any, names: Mapping[str, str]) -> UserError:
    """What a config says and its weights do not hold, in the words of its file."""
    name = names.get(key, key)
    if key == "norm" and key not in names:
        return UserError(
            f"the weights of '{where}' have norms with a bias, and its config is of a layout that has "
            "RMSNorms alone: they do not belong together"
        )
    if name == "rms_norm":
        said, found = said == "rms", found == "rms"
    return UserError(
        f"the config of '{where}' says {name}={reprlib.repr(said)}, and its weights are of a model with "
        f"{name}={found}: they do not belong together"
    )


def _with_our_names(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    prefixed = all(name.startswith(_DDP) for name in weights)
    named: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        ours = name.removeprefix(_DDP) if prefixed else name
        for theirs, renamed in _RENAMED.items():
            if ours.startswith(theirs):
                ours = renamed + ours.removeprefix(theirs)
                break
        if ours in named:
            raise UserError(f"'{where}' holds {listed([ours])} twice, under different names")
        named[ours] = tensor
    return named


def _from_shapes(named: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    sizes: dict[str, torch.Size] = {}
    wanted = {
        _EMBEDDING: 2, f"{_MIXER}in_proj.weight": 2, f"{_MIXER}A_log": 2, f"{_MIXER}conv1d.weight": 3,
        f"{_MIXER}dt_proj.weight": 2,
    }  # fmt: skip
    for name, dimensions in wanted.items():
        if name not in named:
            raise UserError(f"'{where}' holds no MambaByte: it has {listed(sorted(named))}, and no {name}")
        sizes[name] = named[name].shape
        if len(sizes[name]) != dimensions or 0 in sizes[name]:
            raise UserError(f"'{where}' is damaged: {name} has shape {tuple(sizes[name])}")
    vocabulary, width = sizes[_EMBEDDING]
    if not VOCABULARY <= vocabulary <= _LARGEST_PADDING:
        raise UserError(
            f"'{where}' has a vocabulary of {vocabulary:,}: a model of bytes has {VOCABULARY}, or a few more "
            "for padding"
        )
    inner, odd = divmod(sizes[f"{_MIXER}in_proj.weight"][0], 2)
    expand, rest = divmod(inner, width)
    if odd or rest or not expand:
        raise UserError(
            f"'{where}' has {inner} inner channels, which is no multiple of its width {width}: mambabyte has "
            "no such model"
        )
    head = named.get(_HEAD)
    return {
        "d_model": width,
        "n_layer": len({match[1] for name in named if (match := _LAYER.match(name))}),
        "d_state": sizes[f"{_MIXER}A_log"][1],
        "d_conv": sizes[f"{_MIXER}conv1d.weight"][2],
        "expand": expand,
        "dt_rank": sizes[f"{_MIXER}dt_proj.weight"][1],
        "norm": "layer" if "backbone.norm_f.bias" in named else "rms",
        "tie_embeddings": head is None or same_bits(head, named[_EMBEDDING]),
    }


def _shapes_of_all_layers(config: MambaByteConfig) -> dict[str, torch.Size]:
    """What the state dict should hold, from one layer: building them all takes longer than mapping them."""
    wanted: dict[str, torch.Size] = {}
    for name, shape in shapes(replace(config, n_layer=1)).items():
        if match := _LAYER.match(name):
            layers = (f"backbone.layers.{layer}.{name[match.end() :]}" for layer in range(config.n_layer))
            wanted.update(dict.fromkeys(layers, shape))
        else:
            wanted[name] = shape
    return wanted


def _without_padding(named: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The weights with 256 rows of embedding and head, the head of a tied model beside its embedding."""
    rows = len(named[_EMBEDDING])
    named = {_HEAD: named[_EMBEDDING], **named}
    if rows == VOCABULARY:
        return named
    print(
        f"mambabyte: '{where}' has a vocabulary of {rows}: its first {VOCABULARY} symbols are taken for the "
        "bytes, the others, padding or marks, are cut off",
        file=sys.stderr,
    )
    return {
        name: tensor[:VOCABULARY] if name in (_EMBEDDING, _HEAD) else tensor for name, tensor in named.items()
    }


def _check_shapes(named: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], where: str) -> None:
    wrong = [
        f"{name} is {tuple(named[name].shape)} and should be {tuple(shape)}"
        for name, shape in wanted.items()
        if named[name].shape != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(f"the weights of '{where}' do not fit together: {'; '.join(wrong[:_SHOWN])}{more}")
