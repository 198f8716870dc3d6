"""mambabyte lineage: the way from state space models to Mamba, as a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mambabyte.commands import CKPT, OUT, Command
from mambabyte.config.composition import CommandSettings
from mambabyte.errors import UserError
from mambabyte.runtime.system_errors import cannot_write

if TYPE_CHECKING:
    from mambabyte.models import MambaByte


@dataclass
class LineageSettings(CommandSettings):
    """conf/lineage.yaml"""

    yaml: ClassVar[str] = "lineage"
    ckpt: Path | None
    out: Path
    records: Path | None


def run(settings: LineageSettings) -> None:
    """Write the page and its figures to the folder ``out``.

    Raises:
        UserError: the model cannot be read or is no MambaByte; there is no folder ``records``, or it
            holds nothing that can be drawn; ``out`` cannot be written.
    """
    from mambabyte.lineage.figures import RECORDED
    from mambabyte.lineage.page import build

    names = [f"{name}.csv" for name in RECORDED]
    records = Path("docs/benchmarks")
    if settings.records is not None:
        records = settings.records.expanduser()
        if not records.is_dir():
            raise UserError(f"records={records} is no folder: name one with {' or '.join(names)}")
        if not any((records / name).is_file() for name in names):
            raise UserError(
                f"records={records} has no {' and no '.join(names)}: leave it out, or name another"
            )
    page = build(_model(settings.ckpt), records)
    folder = settings.out.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in page.figures.items():
            (folder / f"{name}.png").write_bytes(image)
        (folder / "lineage.html").write_text(page.html, encoding="utf-8")
    except OSError as error:
        raise cannot_write(folder, error, "out=") from error
    print(f"mambabyte: lineage.html and its figures are in {folder}")


def _model(ckpt: Path | None) -> MambaByte | None:
    from mambabyte.checkpoints import load_model
    from mambabyte.models import MambaByte

    if ckpt is None:
        return None
    model = load_model(ckpt)
    if not isinstance(model, MambaByte):
        kind = type(model).__name__
        raise UserError(f"ckpt={ckpt} holds a model {kind}, which has no step sizes: name a MambaByte")
    return model


COMMAND = Command(
    "the way from state space models to Mamba as a page: mambabyte lineage --ckpt runs/quickstart",
    LineageSettings,
    run,
    flags=(CKPT, OUT),
)
