"""Secrets in text: redacted in output, refused in settings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mambabyte.errors import UserError

HIDDEN = "***"
# Shorter values, such as a local database's password, could be an ordinary word in a path.
_MIN_LENGTH = 16
_SECRET_NAME = re.compile(r"(TOKEN|API_?KEY|SECRET|SECRET_(ACCESS_)?KEY|PASSWORD|PASSWD)$", re.IGNORECASE)
_SECRET = re.compile(
    r"(?<=://)[^/\s:]*:[^/\s]+(?=@)"  # scheme://user:password@host
    r"|(?<=http://)[^/\s]+(?=@)|(?<=https://)[^/\s]+(?=@)"  # https://token@host
    r"|(?<=[?&])(?:[\w.-]*(?:token|key|secret|signature|password)=)[^&\s'\"]+"  # ?token=, a signed URL
    r"|\b(?:hf_[A-Za-z0-9]{30,}|wandb_v\d_\w{30,}|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace with *** each password or signature in a URL, each token of the Hugging Face Hub, Weights &
    Biases or GitHub, and the value of each environment variable named like a secret (…_API_KEY)."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_LENGTH and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    return _SECRET.sub(HIDDEN, text)


def refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Refuse settings that hold a secret: a run copies them to its directory, checkpoints and logger.

    Raises:
        UserError: a string anywhere in ``settings`` holds one.
    """
    for key, text in _strings(settings, ""):
        if redact(text) != text:
            raise UserError(
                f"{redact(key)} holds a password or a token, which the run's files would keep: remove it, "
                "and set it in the environment (HF_TOKEN, WANDB_API_KEY) or by a netrc file"
            )


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield path, str(key)
            yield from _strings(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner, path)
