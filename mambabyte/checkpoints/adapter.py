"""A run's adapters alone, in the files of peft."""

from pathlib import Path

from mambabyte.checkpoints.export import new_folder
from mambabyte.checkpoints.formats.layout import ADAPTER, ADAPTER_CONFIG
from mambabyte.checkpoints.formats.weights import write_tensors
from mambabyte.checkpoints.hub import hub_id
from mambabyte.checkpoints.reading import Checkpoint
from mambabyte.errors import UserError
from mambabyte.models.lora import adapters, peft_config


def write_adapter(checkpoint: Checkpoint, folder: str | Path, card: str) -> int:
    """Write the adapters as peft's ``PeftModel.from_pretrained`` reads them: ``folder`` completely or not at
    all.

    Args:
        card: a text about them, for README.md.

    Returns:
        Their number of parameters.

    Raises:
        UserError: there are none, peft is missing, or the folder exists already or cannot be written.
    """
    if checkpoint.lora is None:
        raise UserError(f"'{checkpoint.name}' holds no adapters: it was not trained with lora=")
    base = str(checkpoint.config.get("ckpt"))
    tensors = adapters(checkpoint.state_dict)
    description = peft_config(checkpoint.lora, base.removeprefix("hub:") if hub_id(base) else None)
    description.inference_mode = True
    with new_folder(folder, card) as temporary:
        description.save_pretrained(str(temporary))
        write_tensors(tensors, temporary, ADAPTER, ADAPTER_CONFIG)
    return sum(tensor.numel() for tensor in tensors.values())
