"""mambabyte export: a trained model as a folder of safetensors and JSON, to give away."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mambabyte.commands import CKPT, OUT, Command
from mambabyte.config.composition import CommandSettings


@dataclass
class ExportSettings(CommandSettings):
    """conf/export.yaml"""

    yaml: ClassVar[str] = "export"
    ckpt: Path
    out: Path


def run(settings: ExportSettings) -> None:
    """Write ``out``, which ``ckpt=`` of any command takes.

    Raises:
        UserError: the checkpoint cannot be read, or ``out`` not written.
    """
    from mambabyte import checkpoints

    checkpoint = checkpoints.read(settings.ckpt)
    model, step = checkpoint.build_model(), checkpoint.step
    checkpoints.write_export(model, checkpoint.config, step, settings.out)
    print(
        f"mambabyte: '{settings.out}' holds the {model.num_parameters():,} parameters of step {step:,} "
        f"(sha256 {checkpoints.weights_fingerprint(model)})",
        file=sys.stderr,
    )


COMMAND = Command(
    "write a model as safetensors: mambabyte export --ckpt runs/quickstart --out quickstart",
    ExportSettings,
    run,
    flags=(CKPT, OUT),
)
