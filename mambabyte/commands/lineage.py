"""``mambabyte lineage``: the way from state space models to Mamba, as a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mambabyte.commands import CKPT, Command, Flag
from mambabyte.config.settings import Settings
from mambabyte.errors import UserError
from mambabyte.runtime.system_errors import cannot_write

if TYPE_CHECKING:
    from mambabyte.models import MambaByte


@dataclass
class LineageSettings(Settings):
    ckpt: str | None = None
    out: str = "lineage"
    records: str = "docs/benchmarks"


def run(settings: LineageSettings) -> None:
    """Write the page and its figures to the folder ``out``.

    Raises:
        UserError: the model cannot be read or is no MambaByte, or ``out`` cannot be written.
    """
    from mambabyte.lineage.page import build

    page = build(_model(settings.ckpt), Path(settings.records).expanduser())
    folder = Path(settings.out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in page.figures.items():
            (folder / f"{name}.png").write_bytes(image)
        (folder / "lineage.html").write_text(page.html, encoding="utf-8")
    except OSError as error:
        raise cannot_write(folder, error, "--out") from error
    print(f"mambabyte: lineage.html and its figures are in {folder}")


def _model(ckpt: str | None) -> MambaByte | None:
    from mambabyte.checkpoints import load_model
    from mambabyte.models import MambaByte

    if ckpt is None:
        return None
    model = load_model(ckpt)
    if not isinstance(model, MambaByte):
        kind = type(model).__name__
        raise UserError(f"--ckpt {ckpt} holds a model {kind}, which has no step sizes: name a MambaByte")
    return model


COMMAND = Command(
    "the way from state space models to Mamba, computed and drawn as a page",
    LineageSettings,
    run,
    flags=(
        CKPT,
        Flag("--out", "write the page and its figures there", "out", metavar="FOLDER", short="-o"),
        Flag("--records", "where the CSV files of the measured figures are", "records", metavar="FOLDER"),
    ),
)
