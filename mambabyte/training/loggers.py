"""Where metrics go besides metrics.csv. Nothing here asks a question, and nothing needs a key."""

import netrc
import os
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from mambabyte.errors import UserError
from mambabyte.training.configuration import LoggerConfig


def build_logger(config: LoggerConfig, run_dir: Path, name: str, settings: dict[str, Any]) -> Logger | None:
    """The logger of a run; None for ``csv``, since metrics.csv is always written.

    Args:
        settings: the resolved configuration, shown beside the curves.

    Raises:
        UserError: the service's package is missing, or the service refuses the run.
    """
    try:
        if config.service == "wandb":
            return _wandb(config, run_dir, name, settings)
        if config.service == "tensorboard":
            return TensorBoardLogger(str(run_dir), name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger={config.service} needs a package that is not here: pip install {config.service}"
        ) from error
    return None


def _wandb(config: LoggerConfig, run_dir: Path, name: str, settings: dict[str, Any]) -> WandbLogger:
    offline = "WANDB_MODE" not in os.environ and not _has_wandb_credentials()
    if offline:
        print(
            f"mambabyte: no wandb key: recording offline, to be sent by `wandb sync {run_dir}/wandb/*`",
            file=sys.stderr,
        )
    id_file = run_dir / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:12], encoding="ascii")
    logger = WandbLogger(
        name=name,
        project=config.project,
        entity=config.entity,
        save_dir=run_dir,
        id=id_file.read_text(encoding="ascii").strip(),
        resume="allow",
        offline=offline,
        config=settings,
    )
    import wandb

    try:
        _ = logger.experiment  # connects now, while a refusal can still be told in a sentence
    except wandb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"wandb refused the run ({reason}): set WANDB_MODE=offline, or use logger=csv"
        ) from error
    return logger


def _has_wandb_credentials() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if path and (file := Path(path).expanduser()).is_file():
            try:
                return netrc.netrc(file).authenticators(host) is not None
            except netrc.NetrcParseError:
                return False
    return False
