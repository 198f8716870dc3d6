"""A folder or a file of another program's, recognised by its config or, without one, by its weights."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from torch import Tensor

from mambabyte.checkpoints.formats import mamba_ssm, transformers
from mambabyte.checkpoints.formats.state_dict import understand
from mambabyte.checkpoints.formats.weights import read_weights
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig


def read_model_folder(
    folder: Path, description: dict[str, Any], where: str
) -> tuple[MambaByteConfig, dict[str, Tensor]]:
    """The MambaByte in a folder whose config.json is ``description``: its config, and weights by our names.

    Raises:
        UserError: it is of no known layout, another model, damaged or incomplete.
    """
    kind = description.get("model_type")
    if kind == transformers.MODEL_TYPE:
        given, names = transformers.given(description, where), transformers.NAMES
    elif kind is not None:
        raise UserError(
            f"'{where}' holds a model of type {reprlib.repr(kind)}: of transformers' models, only "
            f"MambaForCausalLM (model_type {transformers.MODEL_TYPE!r}) can be read"
        )
    elif "d_model" in description and "n_layer" in description:
        given, names = mamba_ssm.given(description, where), mamba_ssm.NAMES
    else:
        raise UserError(
            f"the config.json of '{where}' is neither mambabyte's, nor mamba_ssm's, nor transformers'"
        )
    return understand(read_weights(folder), given, where, names)
