"""Reading checkpoints. Files may come from strangers: only tensors and plain values are unpickled."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambabyte.checkpoints.building import model_of
from mambabyte.checkpoints.checksum import is_intact
from mambabyte.checkpoints.export import is_export, read_export
from mambabyte.checkpoints.formats.layout import CONFIG, SAFETENSORS, is_model_folder, read_json
from mambabyte.checkpoints.formats.reading import read_model_folder
from mambabyte.checkpoints.formats.state_dict import understand
from mambabyte.checkpoints.formats.weights import is_state_dict, read_tensors
from mambabyte.checkpoints.hub import HubId, download, hub_id
from mambabyte.checkpoints.paths import checkpoint_folder, resolve, step_files
from mambabyte.checkpoints.pickles import load_pickle
from mambabyte.checkpoints.sharded import join_shards, shard_files
from mambabyte.checkpoints.writing import FORMAT
from mambabyte.config.settings import fill
from mambabyte.errors import UserError, is_out_of_memory
from mambabyte.models import ByteLM, ByteLMConfig, config_from_dict
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.models.lora import merged, without_adapters
from mambabyte.runtime.devices import choose_device

_MODEL_PREFIX = "model."  # the training module's attribute that holds the ByteLM


class DamagedCheckpoint(UserError):
    """The file is cut short or its bytes have changed since it was written."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: the file, or the folder of shards or of an export.
        content: all of it, as Lightning's trainer restores it. Tensors are on the CPU, read when used.
        hub: the model of the hub, with its commit, if it is one; ``path`` is then in the hub's cache.
    """

    path: Path
    content: dict[str, Any]
    hub: HubId | None = None

    @property
    def name(self) -> str:
        """What ``ckpt=`` takes to read it again."""
        return str(self.hub or self.path)

    @property
    def step(self) -> int:
        """The optimizer steps taken."""
        return self.content["global_step"]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the run that wrote the checkpoint; UserError if it is missing."""
        config = self.content["mambabyte"].get("config")
        if not isinstance(config, dict):
            raise UserError(f"'{self.name}' does not say with which configuration it was trained")
        for name in ("data", "model", "optimizer", "trainer"):
            if not isinstance(config.get(name, {}), dict):
                raise UserError(f"'{self.name}' holds a damaged configuration: {name} is no section")
        return config

    @property
    def context_length(self) -> int:
        """Bytes of the windows it was trained on; UserError if that is not recorded."""
        length = self.config.get("context_length")
        if not isinstance(length, int) or not 1 <= length <= 2**30:
            raise UserError(f"'{self.name}' does not say with which context_length it was trained")
        return length

    @property
    def model_config(self) -> dict[str, Any]:
        """The description that :func:`mambabyte.models.config_from_dict` takes."""
        return self.content["mambabyte"]["model"]

    @property
    def lora(self) -> LoraSettings | None:
        """The adapters that the weights hold; None without any. UserError if they are described wrongly."""
        described = self.content["mambabyte"].get("lora")
        return None if described is None else fill(LoraSettings, described)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights under the names of the model that was trained, its adapters among them."""
        return {
            name.removeprefix(_MODEL_PREFIX): tensor
            for name, tensor in self.content["state_dict"].items()
            if name.startswith(_MODEL_PREFIX)
        }

    def base_model(self) -> ByteLM:
        """The model without the adapters that were trained beside it, in eval mode; UserError as
        :func:`load_model`."""
        try:
            return model_of(config_from_dict(self.model_config), without_adapters(self.state_dict)).eval()
        except ValueError as error:
            raise self._misfit() from error

    def _misfit(self) -> UserError:
        return UserError(f"the weights in '{self.name}' do not fit the model the file describes")

    def build_model(self, config: ByteLMConfig | None = None) -> ByteLM:
        """See :func:`load_model`. Adapters are merged into the weights."""
        misfit = self._misfit()
        weights, lora = self.state_dict, self.lora
        if lora is not None:
            try:
                weights = merged(weights, lora)
            except ValueError as error:
                raise misfit from error
        if config is None:
            try:
                return model_of(config_from_dict(self.model_config), weights).eval()
            except ValueError as error:
                raise misfit from error
        with torch.random.fork_rng(devices=[]):  # building draws initial weights that are never used
            model = config.build()
        _widen(model, weights)
        try:
            model.load_state_dict(weights)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise misfit from error
        return model.eval()


def _widen(model: ByteLM, stored: Mapping[str, Tensor]) -> None:
    """Make room for stored weights of more precision than float32."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        wanted = stored[name].dtype if name in stored else tensor.dtype
        if tensor.is_floating_point() and wanted.is_floating_point:
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, wanted))


def load_model(
    path: str | Path, config: ByteLMConfig | None = None, device: str | torch.device = "cpu"
) -> ByteLM:
    """The trained model, in eval mode, in float32, or in float64 if it was saved so.

    Args:
        path: as for :func:`read`. The weights are mapped into memory: changing the file changes the model.
        config: the model's, needed only if its class is yours: a checkpoint builds none but ours.
        device: as PyTorch names it, or "auto": CUDA if there is one, else the CPU.

    Raises:
        UserError: see :func:`read`; there is no such device; or the weights do not fit the described model.
    """
    where = choose_device(str(device))
    model = read(path).build_model(config)
    return model if where.type == "cpu" else model.to(where)


def read(path: str | Path) -> Checkpoint:
    """The checkpoint at ``path``: a run directory (its newest), a checkpoint, the folder of a model, or
    ``hub:owner/name[@revision]``, as docs/checkpoints.md lists them.

    Raises:
        DamagedCheckpoint: the file is cut short or its bytes have changed.
        UserError: the file is missing, of no known layout, or holds more than tensors and plain values.
    """
    hub = hub_id(path)
    if hub is not None:
        path, hub = download(hub)
    path = resolve(path)
    name = str(hub or path)
    try:
        content = _load(path, name)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{name}' is not a mambabyte checkpoint: it holds more than tensors and plain values"
        ) from error
    except PermissionError as error:
        raise UserError(f"'{name}' cannot be read: {error.strerror}; change its permissions") from error
    except Exception as error:  # a stranger's file can make the readers raise anything
        if is_out_of_memory(error):  # and not damaged: an older checkpoint must not take its place
            raise
        raise DamagedCheckpoint(
            f"'{name}' cannot be read as a checkpoint: it is damaged, cut short or another format; if it is "
            "the newest of a run, remove it to use the one before it"
        ) from error
    content = content if isinstance(content, dict) else {}
    ours = content.get("mambabyte")
    ours = ours if isinstance(ours, dict) else {}
    if not (isinstance(ours.get("model"), dict) and isinstance(content.get("state_dict"), dict)):
        raise UserError(f"'{name}' was not written by mambabyte: it names no model")
    if not isinstance(content.get("global_step"), int):
        raise UserError(f"'{name}' is damaged: it does not say how many steps it was trained for")
    if ours.get("format") != FORMAT:
        raise UserError(
            f"'{name}' has checkpoint format {ours.get('format')!r}; this version reads format {FORMAT}"
        )
    return Checkpoint(path, content, hub)


def read_newest(run_dir: str | Path) -> tuple[Checkpoint, list[Path]] | None:
    """The newest undamaged checkpoint of a run, and the damaged files that are newer. None without any.

    Raises:
        UserError: all of its checkpoints are damaged, or the newest is refused for another reason.
    """
    damaged: list[Path] = []
    for path in reversed(step_files(checkpoint_folder(run_dir))):
        try:
            return read(path), damaged
        except DamagedCheckpoint:
            damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise UserError(
            f"every checkpoint in '{damaged[0].parent}' is damaged ({names}): bring back a copy, or "
            "remove that folder to train from the start"
        )
    return None


def _load(path: Path, name: str) -> Any:
    if path.is_dir() and is_model_folder(path):
        description = read_json(path / CONFIG)
        if is_export(description):
            return read_export(path, description, _MODEL_PREFIX)
        return _content(*read_model_folder(path, description, name))
    if path.is_dir():
        return join_shards([_load(file, name) for file in shard_files(path)])
    if path.suffix == Path(SAFETENSORS).suffix:
        if is_model_folder(path.parent):
            raise UserError(f"'{path}' has a config.json beside it, which belongs to it: name the folder")
        return _content(*understand(read_tensors(path), {}, name))
    if not is_intact(path):
        raise ValueError("the file does not agree with its checksum")
    content = load_pickle(path)
    return _content(*understand(content, {}, name)) if is_state_dict(content) else content


def _content(config: ByteLMConfig, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """A model of another program's, which does not say how it was trained, as a checkpoint's content."""
    state_dict = {f"{_MODEL_PREFIX}{name}": tensor for name, tensor in weights.items()}
    ours = {"format": FORMAT, "model": config.to_dict(), "config": None}
    return {"state_dict": state_dict, "global_step": 0, "mambabyte": ours}


def weights_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of the state dict, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
