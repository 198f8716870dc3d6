"""mambabyte export: a trained model as a folder to give away, for mambabyte or for another program."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mambabyte.commands import CKPT, OUT, Command, Flag
from mambabyte.config.composition import CommandSettings
from mambabyte.errors import UserError

if TYPE_CHECKING:
    from mambabyte.checkpoints import Checkpoint


@dataclass
class ExportSettings(CommandSettings):
    """conf/export.yaml"""

    yaml: ClassVar[str] = "export"
    ckpt: Path
    out: Path
    format: Literal["safetensors", "mamba_ssm", "transformers", "gguf", "adapter"]
    push: str | None


def run(settings: ExportSettings) -> None:
    """Write ``out``, and send it to the hub if ``push`` names a place there.

    Raises:
        UserError: the checkpoint cannot be read, the format cannot hold its model, or ``out`` cannot be
            written or sent.
    """
    from mambabyte import checkpoints
    from mambabyte.reporting.model_card import model_card

    target = None if settings.push is None else checkpoints.hub_id(settings.push)
    if settings.push is not None and target is None:
        raise UserError(f"push={settings.push} is no place on the hub: write push=hub:owner/name")
    checkpoint = checkpoints.read(settings.ckpt)
    model, config = checkpoint.build_model(), _config_of(checkpoint)
    if settings.format not in ("safetensors", "adapter") and model.further_heads is not None:
        model = checkpoints.without_further_heads(model)
        print(
            f"mambabyte: format={settings.format} holds the next byte's head alone: others are left out",
            file=sys.stderr,
        )
    summary = _summary_beside(checkpoint)
    adapted = None
    if settings.format == "adapter" and checkpoint.lora is not None:
        adapted = checkpoints.weights_fingerprint(checkpoint.base_model())
    card = model_card(model, settings.format, checkpoints.portable(config), checkpoint.step, summary, adapted)
    steps = f" of step {checkpoint.step:,}" if checkpoint.step else ""
    if settings.format == "adapter":
        size = checkpoints.write_adapter(checkpoint, settings.out, card)
        held = f"the {size:,} parameters of the adapters{steps}, for the weights with sha256 {adapted}"
    else:
        checkpoints.write_export(model, config, checkpoint.step, settings.out, settings.format, card)
        fingerprint = checkpoints.weights_fingerprint(model)
        held = f"the {model.num_parameters():,} parameters{steps} (sha256 {fingerprint})"
    print(f"mambabyte: '{settings.out}' holds {held}", file=sys.stderr)
    if target is not None:
        address = checkpoints.upload(Path(settings.out).expanduser(), target)
        print(f"mambabyte: '{settings.out}' is at {address}", file=sys.stderr)


def _config_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The configuration of the run that trained it; a model of another program's has none."""
    return None if checkpoint.content["mambabyte"].get("config") is None else checkpoint.config


def _summary_beside(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The figures of the run that the checkpoint lies in, if they are of these weights."""
    from mambabyte.runs.summary import read_summary

    if checkpoint.path.parent.name != "checkpoints":
        return None
    return read_summary(checkpoint.path.parent.parent, checkpoint.step)


COMMAND = Command(
    "write a model for others: mambabyte export --ckpt runs/quickstart --out quickstart",
    ExportSettings,
    run,
    flags=(
        CKPT,
        OUT,
        Flag(
            *(
                "--format",
                "safetensors (ours), mamba_ssm, transformers, gguf (llama.cpp) or adapter",
                "format",
            ),
            metavar="NAME",
        ),
        Flag("--push", "and send it to the hub: hub:owner/name", "push", metavar="ID"),
    ),
)
