"""Whether there are credentials for Weights & Biases. Their values are never used."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse


def has_wandb_credentials() -> bool:
    """Whether the environment or the netrc file written by ``wandb login`` holds a key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if path and (file := Path(path).expanduser()).is_file():
            try:
                return netrc.netrc(file).authenticators(host) is not None
            except (OSError, netrc.NetrcParseError):
                return False
    return False
