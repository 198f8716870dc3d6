"""The weights of a model folder: safetensors or PyTorch's files, whole or in shards, mapped into memory."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from mambabyte.checkpoints.formats.layout import CONFIG, INDEX, SAFETENSORS, check_file, shards, weights_file
from mambabyte.checkpoints.pickles import load_pickle
from mambabyte.errors import UserError, is_out_of_memory
from mambabyte.runtime.terminal import visible

_SHOWN, _LONGEST = 8, 100  # names in a sentence, and characters of one


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model folder by their names, on the CPU, read when used.

    Raises:
        UserError: there are none, a file is missing or damaged, or a shard holds others than the index says.
    """
    name = weights_file(os.listdir(folder))
    if name is None:
        raise UserError(
            f"'{folder}' holds a config.json, but no weights: model.safetensors or pytorch_model.bin, whole "
            "or in shards"
        )
    if not name.endswith(INDEX):
        return read_tensors(folder / name)
    whole: dict[str, Tensor] = {}
    for shard, names in shards(folder / name).items():
        part = read_tensors(folder / shard)
        if part.keys() != set(names):
            raise UserError(
                f"'{folder / shard}' is another file than '{name}' describes: "
                + differences(part, names, "in the index")
            )
        whole.update(part)
    return whole


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by their names, on the CPU, read when used.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    check_file(path)
    try:
        tensors = load_file(path) if path.suffix == Path(SAFETENSORS).suffix else load_pickle(path)
    except pickle.UnpicklingError as error:
        raise UserError(f"'{path}' holds more than tensors and plain values: it is not read") from error
    except PermissionError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}; change its permissions") from error
    except Exception as error:  # a stranger's file can make the readers raise anything
        if is_out_of_memory(error):
            raise
        raise UserError(f"'{path}' cannot be read: it is damaged, cut short or of another format") from error
    if not is_state_dict(tensors):
        raise UserError(f"'{path}' holds no weights: it is no state dict")
    return tensors


def write_tensors(
    tensors: Mapping[str, Tensor], folder: Path, name: str = SAFETENSORS, config: str = CONFIG
) -> None:
    """Write safetensors beside the file of a config, readable by whoever may read that."""
    save_file(dict(tensors), folder / name, metadata={"format": "pt"})
    shutil.copymode(folder / config, folder / name)  # safetensors lets its owner alone read it


def is_state_dict(value: object) -> bool:
    """Whether this maps names to tensors, and nothing else."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def differences(found: Iterable[str], wanted: Iterable[str], where: str) -> str:
    """ "missing are a, b; not in the index are c, d and 7 more"."""
    found, wanted = set(found), set(wanted)
    parts = []
    if missing := sorted(wanted - found):
        parts.append(f"missing {_are(missing)}")
    if unknown := sorted(found - wanted):
        parts.append(f"not {where} {_are(unknown)}")
    return "; ".join(parts)


def listed(names: Sequence[str]) -> str:
    """ "a, b and 7 more": names from a stranger's file, as a terminal may show them."""
    shown = ", ".join(visible(name[:_LONGEST], keep="") for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _are(names: list[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {listed(names)}"
